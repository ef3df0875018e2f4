//! Layers, hints and files.

use std::io::Write as _;
use std::path::PathBuf;

use super::*;

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("syncer.toml");
    std::fs::File::create(&path).and_then(|mut f| f.write_all(text.as_bytes())).expect("a file");
    (dir, path)
}

fn load(text: &str) -> Result<Config, ConfigError> {
    let (_dir, path) = file(text);
    Config::load(Some(&path), [], &[])
}

#[test]
fn sample_is_the_defaults_and_names_every_key() {
    let sample = Config::sample();
    let loaded = load(&sample).expect("the sample loads");
    assert_eq!(Config { file: None, ..loaded }, Config::default());
    for key in keys::KEYS {
        let name = key.path.rsplit('.').next().expect("a name");
        assert!(sample.contains(name), "{} is not in the sample", key.path);
    }
}

#[test]
fn the_table_of_keys_is_the_types() {
    // Uncommented, the sample sets every key: each must be known to the types, and none be missing.
    let all: String = Config::sample()
        .lines()
        .map(|l| match l.strip_prefix("# ") {
            Some(rest) if rest.starts_with('[') || (rest.contains(" = ") && !rest.contains(". ")) => {
                format!("{rest}\n")
            }
            _ => format!("{l}\n"),
        })
        .collect();
    let config: Config = toml::from_str(&all).unwrap_or_else(|e| panic!("{e}\n{all}"));
    let printed: toml::Table = toml::from_str(&config.print()).expect("prints as TOML");
    for key in keys::KEYS {
        let mut at = Some(&toml::Value::Table(printed.clone())).cloned();
        for part in key.path.split('.') {
            at = at.and_then(|v| v.get(part).cloned());
        }
        assert!(at.is_some(), "{} is in the table but not in the types", key.path);
    }
    let leaves = printed.iter().map(|(_, v)| v.as_table().filter(|t| !t.is_empty()).map_or(1, toml::Table::len));
    assert_eq!(leaves.sum::<usize>(), keys::KEYS.len(), "a field has no entry in the table");
}

#[test]
fn unknown_key_names_line_and_nearest() {
    let e = load("id = \"a\"\nlistne = \"127.0.0.1:1\"\n").expect_err("unknown");
    assert_eq!((e.line(), e.key(), e.nearest()), (Some(2), Some("listne"), Some("listen")));
    let e = load("[auth]\nmode = \"open\"\npeer_secert = \"x\"\n").expect_err("unknown");
    assert_eq!((e.line(), e.key(), e.nearest()), (Some(3), Some("auth.peer_secert"), Some("auth.peer_secret")));
    assert!(e.to_string().contains("syncer.toml:3: `auth.peer_secert`: unknown key; did you mean"), "{e}");
}

#[test]
fn of_keys_equally_near_the_one_with_the_nearer_path_is_meant() {
    for (text, nearest) in [
        ("connections_max = 5\n", "limits.\"http.connections_max\""),
        ("idd = \"a\"\n", "id"),
        ("[auth]\nmod = \"open\"\n", "auth.mode"),
        ("[auth]\ntokens = [{ token = \"t\", idd = \"o\", role = \"operator\" }]\n", "auth.tokens.id"),
        ("[tls]\ncret = \"c\"\n", "tls.cert"),
    ] {
        assert_eq!(load(text).expect_err("unknown").nearest(), Some(nearest), "{text}");
    }
}

#[test]
fn wrong_type_names_the_line() {
    let e = load("id = \"a\"\n\nlisten = 5\n").expect_err("wrong type");
    assert_eq!(e.line(), Some(3), "{e}");
    assert!(load("id = \"\"").is_err());
    assert!(load("drain_grace = \"soon\"").is_err());
}

#[test]
fn later_layers_win() {
    let (_dir, path) = file("zone = \"file\"\nid = \"file\"\n");
    let env = [
        ("TRUNKLINE_ZONE".to_owned(), "env".to_owned()),
        ("TRUNKLINE_ID".to_owned(), "7".to_owned()),
        ("TRUNKLINE_LOG".to_owned(), "debug".to_owned()),
        ("PATH".to_owned(), "/bin".to_owned()),
        ("TRUNKLINE_LIMITS__X".to_owned(), "7".to_owned()),
    ];
    let config = Config::load(Some(&path), env, &[("zone".to_owned(), "flag".to_owned())]).expect("loads");
    assert_eq!((config.zone.as_str(), config.id.as_str()), ("flag", "7"));
    assert_eq!(config.limits["x"].as_integer(), Some(7));
}

#[test]
fn environment_errors_name_the_variable() {
    let e = Config::load(None, [("TRUNKLINE_ZON".to_owned(), "x".to_owned())], &[]).expect_err("unknown");
    assert_eq!(e.nearest(), Some("zone"));
    assert!(e.to_string().contains("TRUNKLINE_ZON"), "{e}");
    let e = Config::load(None, [("TRUNKLINE_LISTEN".to_owned(), "x".to_owned())], &[]).expect_err("bad");
    assert!(e.to_string().contains("TRUNKLINE_LISTEN"), "{e}");
}

#[test]
fn secrets_are_not_printed() {
    let config = load("[auth]\npeer_secret = \"hush\"\n").expect("loads");
    assert!(!config.print().contains("hush"));
    assert!(!format!("{config:?}").contains("hush"));
    assert_eq!(config.peer_secret(), Some("hush"));
    // Without its quotes it is something else, which errors would show.
    let forgotten = [
        "[auth]\npeer_secret = 20071983\n",
        "[auth]\ntokens = [{ token = 20071983, id = \"o\", role = \"operator\" }]\n",
    ];
    for text in forgotten {
        let e = load(text).expect_err("a number");
        assert_eq!(e.line(), Some(2), "{e}");
        assert!(!format!("{e} {e:?}").contains("20071983"), "{e}");
    }
}

#[test]
fn clear_text_and_open_mode_stay_on_loopback() {
    assert_eq!(load("listen = \"0.0.0.0:1\"").expect_err("refused").key(), Some("tls"));
    assert_eq!(load("[auth]\nmode = \"tokens\"").expect_err("refused").key(), Some("auth.tokens"));
    let alone = "members_file = \"/dev/null\"\n[auth]\nmode = \"tokens\"\ntokens = [{ token = \"t\", id = \"o\", role = \"operator\" }]";
    assert_eq!(load(alone).expect_err("refused").key(), Some("auth.peer_secret"));
}

#[test]
fn unreadable_and_wrong_authorities_are_named() {
    let e = load("sfu_ca_file = \"/nowhere/ca.pem\"").expect_err("unreadable");
    assert!(e.to_string().contains("/nowhere/ca.pem") && e.key() == Some("sfu_ca_file"), "{e}");

    let (dir, path) = file("not a certificate");
    let with = |p: &std::path::Path| load(&format!("sfu_ca_file = {:?}", p.display().to_string()));
    let e = with(&path).expect_err("no certificate");
    assert!(e.to_string().contains("holds no certificate"), "{e}");

    let leaf = rcgen::generate_simple_self_signed(vec!["sfu".to_owned()]).expect("a certificate");
    let leaf_path = dir.path().join("leaf.pem");
    std::fs::write(&leaf_path, leaf.cert.pem()).expect("written");
    let e = with(&leaf_path).expect_err("no authority");
    assert!(e.to_string().contains("no certificate authority"), "{e}");
}

#[test]
fn a_region_is_in_one_group_and_the_error_says_where_and_what_to_do() {
    let of = |text: &str| load(&format!("id = \"a\"\n[region_groups]\n{text}\n"));
    let groups = of("europe = [\"eu-west\", \"eu-central\"]\nasia = [\"tokyo\"]").expect("loads").region_groups;
    let region = |name: &str| sfu_api::RegionId::new(name).expect("valid");
    assert_eq!(groups.of(&region("eu-central")), [region("eu-west"), region("eu-central")]);
    assert!(groups.of(&region("lima")).is_empty());

    for (text, says) in [
        ("emea = [\"x\", \"y\"]\neurope = [\"y\"]", "region `y` is in groups `emea` and `europe`"),
        ("europe = [\"x\", \"x\"]", "region `x` is in group `europe` twice; list it once"),
        ("europe = []", "group `europe` has no region; list its regions, or take it away"),
        ("europe = [\"\"]", "must not be empty"),
    ] {
        let e = of(text).expect_err("refused");
        assert!(e.to_string().contains(says), "{e}");
        assert!(e.line().is_some(), "{e}");
    }
}

#[test]
fn groups_come_from_the_environment_too() {
    let env = |value: &str| [("TRUNKLINE_REGION_GROUPS__EUROPE".to_owned(), value.to_owned())];
    let config = Config::load(None, env("[\"eu-west\"]"), &[]).expect("loads");
    assert_eq!(config.region_groups.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["europe"]);
    let printed: toml::Table = toml::from_str(&config.print()).expect("prints as TOML");
    assert_eq!(printed["region_groups"]["europe"][0].as_str(), Some("eu-west"));
    let e = Config::load(None, env("[]"), &[]).expect_err("refused");
    assert!(e.to_string().contains("TRUNKLINE_REGION_GROUPS__EUROPE"), "{e}");
}

#[test]
fn a_certificate_for_sfus_is_refused_without_its_key_or_with_another_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let keys = [0, 1].map(|_| rcgen::KeyPair::generate().expect("a key"));
    let certificate = rcgen::CertificateParams::new(Vec::new()).and_then(|p| p.self_signed(&keys[0])).expect("signed");
    let write = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let cert = format!("sfu_cert_file = \"{}\"\n", write("cert.pem", certificate.pem()));
    let [key, other] = [("key.pem", &keys[0]), ("other.pem", &keys[1])]
        .map(|(name, key)| format!("sfu_key_file = \"{}\"\n", write(name, key.serialize_pem())));
    load(&format!("{cert}{key}")).expect("they fit");
    for (text, at, what) in [
        (cert.clone(), "sfu_key_file", "needed with `sfu_cert_file`"),
        (key, "sfu_cert_file", "needed with `sfu_key_file`"),
        (format!("{cert}{other}"), "sfu_key_file", "does not fit"),
    ] {
        let e = load(&text).expect_err("refused");
        assert!(e.key() == Some(at) && e.to_string().contains(what), "{e}");
    }
}
