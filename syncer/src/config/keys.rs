//! The table of keys: the sample file, nearest-key hints and environment variables come from it.

/// How text from the environment or the command line becomes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Always a string, whatever it looks like.
    Text,
    /// A TOML value: a list of tables, say.
    Toml,
    /// A table whose keys are free: levers, groups.
    Free,
}

/// One key of the configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// Dotted path.
    pub(super) path: &'static str,
    /// How text becomes its value.
    pub(super) kind: Kind,
    /// Its value in the sample file; starts with `=` when that is the default.
    pub(super) sample: &'static str,
    /// What it is, a line per line of the sample file.
    pub(super) doc: &'static str,
}

const fn key(path: &'static str, kind: Kind, sample: &'static str, doc: &'static str) -> Key {
    Key { path, kind, sample, doc }
}

/// Every key, in the order of the sample file: plain keys first, tables after.
pub(super) const KEYS: &[Key] = &[
    key("id", Kind::Text, r#"="syncer-1""#, "Name of this syncer, unique in the fleet."),
    key(
        "zone",
        Kind::Text,
        r#"="z1""#,
        "Failure domain. The standby of a slot lies in another zone when there is one.",
    ),
    key("listen", Kind::Text, r#"="127.0.0.1:8441""#, "Address of the API. Port 0 takes any free port."),
    key(
        "advertise",
        Kind::Text,
        r#""https://syncer-1.internal:8441""#,
        "URL under which the other syncers reach this one. Derived from `listen` when absent.",
    ),
    key(
        "admin_listen",
        Kind::Text,
        r#""127.0.0.1:8442""#,
        "A second listener for operators, probes and metrics, plain HTTP on loopback. When absent there is\none (this one) if `listen` is no loopback address.",
    ),
    key(
        "operate_remotely",
        Kind::Toml,
        "=false",
        "Operators, metrics and debug pages are served by `admin_listen` only, unless `listen` is a loopback\naddress itself. With `true` they are served at `listen` too.",
    ),
    key(
        "members_file",
        Kind::Text,
        r#""members.toml""#,
        "The syncers of the fleet ([[members]] id, url, zone, weight), read again when it changes.\nA new version that is empty, or without more than half of four or more members, is refused\nunless `allow_shrink = true` stands at its top. Alone when absent.",
    ),
    key(
        "sfus_file",
        Kind::Text,
        r#""sfus.toml""#,
        "The SFUs ([[sfus]] id, url, region, zone, driver, capacity, weight), read again when it changes.\n`weight` is how much of the work an SFU shall have beside others of the same capacity: 1 if it is absent,\n0.5 half as much; it is full at its capacity all the same. SFUs of one `zone` of a region\nfail together: while many do, new calls go to other zones if they can (`placement.zone_failing_share`).\nA new version that is empty, or without more than half of four or more SFUs, is refused\nunless `allow_shrink = true` stands at its top. To list none, add `sfus = []`.",
    ),
    key(
        "sfu_ca_file",
        Kind::Text,
        r#""sfu-ca.pem""#,
        "Authorities that signed the SFUs' certificates (PEM), read again when the file changes.",
    ),
    key(
        "sfu_cert_file",
        Kind::Text,
        r#""sfu-client.pem""#,
        "Certificate chain (PEM, the leaf first) for SFUs that ask for one, read again when it or its key changes. Connections\nthat are open stay open.",
    ),
    key("sfu_key_file", Kind::Text, r#""sfu-client-key.pem""#, "Private key of that certificate (PEM)."),
    key(
        "peer_ca_file",
        Kind::Text,
        r#""peer-ca.pem""#,
        "Authorities that signed the syncers' certificates (PEM), read again when the file changes.",
    ),
    key(
        "token_key_file",
        Kind::Text,
        r#""token-key.pem""#,
        "Ed25519 key that signs session tokens (PKCS #8 PEM), read again when the file changes. A fresh key at every start when absent,\nwhich only suits one syncer without other readers of its tokens. The former key stays published until the next one comes:\nbetween two there should be the longest life of a token (`credentials.ttl`), and a minute more.",
    ),
    key(
        "state_dir",
        Kind::Text,
        r#""/var/lib/trunkline""#,
        "Directory for what must survive a restart (the counter of ownership terms).\nNothing survives when absent.",
    ),
    key("drain_grace", Kind::Text, r#"="25s""#, "How long a drain may take, for example `250ms`, `25s`, `2m`."),
    key(
        "tls.cert",
        Kind::Text,
        r#""syncer.pem""#,
        "Certificate chain of the API (PEM, the leaf first). Without [tls]\nthe API is plain HTTP, which is allowed on loopback only.",
    ),
    key("tls.key", Kind::Text, r#""syncer-key.pem""#, "Private key of the certificate (PEM)."),
    key(
        "auth.mode",
        Kind::Text,
        r#"="open""#,
        "`open`: any bearer token is the gateway's id and may do everything; on loopback only.\n`tokens`: only the tokens and certificates listed.",
    ),
    key(
        "auth.tokens",
        Kind::Toml,
        r#"[{ token = "change me", id = "gateway-1", role = "gateway" }]"#,
        "Tokens of mode `tokens`. Roles: gateway, operator, peer. A list `guilds` limits a gateway to guilds of\nthese names, or beginnings that end with `*`.",
    ),
    key(
        "auth.certificates",
        Kind::Toml,
        r#"[{ name = "gateway-1.internal", id = "gateway-1", role = "gateway" }]"#,
        "Certificates of mode `tokens`, by a subject alternative name, or the common name of one that has\nnone. Roles: gateway, operator; `guilds` as above.",
    ),
    key(
        "auth.callers_file",
        Kind::Text,
        r#""callers.toml""#,
        "More of both ([[tokens]], [[certificates]]), read again when it changes.",
    ),
    key(
        "auth.client_ca_file",
        Kind::Text,
        r#""client-ca.pem""#,
        "Authorities that signed the callers' certificates (PEM), read again when the file changes.\nWithout it none is asked for.",
    ),
    key(
        "auth.peer_secret",
        Kind::Text,
        r#""change me too""#,
        "Secret that the syncers share: by it they believe each other's forwarded requests.",
    ),
    key(
        "region_groups",
        Kind::Free,
        r#"europe = ["eu-west", "eu-central"]"#,
        "Regions that stand in for each other, by the name of their group; a region is in one group at most. A call\nwhose region has no SFU left goes to the others of its group, and only then to any, if the lever\n`placement.any_region` allows it. The group of a region needs no such leave.",
    ),
    key(
        "limits",
        Kind::Free,
        "",
        "Initial values of levers, by name. `trunkline limits` lists the names, ranges and defaults;\nall of them can also be changed while the syncer runs.",
    ),
];

/// The key with this path; keys under a free table count as known.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.path == path).or_else(|| {
        let (head, _) = path.split_once('.')?;
        KEYS.iter().find(|k| k.kind == Kind::Free && k.path == head)
    })
}

/// Keys that are levers now: a start value of one stands among the limits.
const MOVED: [(&str, &str); 1] = [("connections_max", "limits.\"http.connections_max\"")];

/// The known key that looks most like `path`, when any does.
pub(super) fn nearest(path: &str) -> Option<String> {
    if let Some((_, now)) = MOVED.iter().find(|(moved, _)| *moved == path) {
        return Some((*now).to_owned());
    }
    let last = path.rsplit('.').next().unwrap_or(path);
    let tables = KEYS.iter().filter_map(|k| k.path.split_once('.').map(|(table, _)| table));
    KEYS.iter()
        .map(|k| k.path)
        .chain(tables)
        .chain([
            "auth.tokens.token",
            "auth.tokens.id",
            "auth.tokens.role",
            "auth.tokens.guilds",
            "auth.certificates.name",
        ])
        .map(|known| {
            let whole = strsim::jaro_winkler(known, path);
            let tail = strsim::jaro_winkler(known.rsplit('.').next().unwrap_or(known), last);
            // Of keys with the same last part, the one whose path is more like it: `idd` is `id`.
            (whole.max(tail), whole, known)
        })
        .max_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)))
        .filter(|(score, ..)| *score > NEAREST_SCORE_MIN)
        .map(|(.., known)| known.to_owned())
}

/// The known key of another file that looks most like `key`, when any does.
pub(super) fn nearest_of(known: &[&str], key: &str) -> Option<String> {
    known
        .iter()
        .map(|known| (strsim::jaro_winkler(known, key), *known))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(score, _)| *score > NEAREST_SCORE_MIN)
        .map(|(_, known)| known.to_owned())
}

/// Below this likeness (Jaro-Winkler, 0 to 1) a hint misleads more than it helps.
const NEAREST_SCORE_MIN: f64 = 0.75;

/// The commented sample file.
pub(super) fn sample() -> String {
    let mut out = String::from(
        "# Configuration of a Trunkline syncer. Commented keys show an example, the others their default.\n\
         # Later layers win: this file, the environment (TRUNKLINE_AUTH__PEER_SECRET), the command line.\n",
    );
    let mut table = "";
    for key in KEYS {
        let (in_table, name) = key.path.split_once('.').unwrap_or(("", key.path));
        out.push('\n');
        let free = key.kind == Kind::Free;
        let doc: String = key.doc.lines().map(|l| format!("# {l}\n")).collect();
        if free {
            out.push_str(&format!("{doc}[{name}]\n"));
            if !key.sample.is_empty() {
                out.push_str(&format!("# {}\n", key.sample));
            }
            continue;
        }
        if in_table != table {
            table = in_table;
            let optional = !KEYS.iter().any(|k| k.path.starts_with(&format!("{table}.")) && k.sample.starts_with('='));
            out.push_str(&format!("{}[{table}]\n", if optional { "# " } else { "" }));
        }
        out.push_str(&doc);
        match key.sample.strip_prefix('=') {
            Some(default) => out.push_str(&format!("{name} = {default}\n")),
            None => out.push_str(&format!("# {name} = {}\n", key.sample)),
        }
    }
    out
}
