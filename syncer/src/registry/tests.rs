//! The suite against the embedded registry, and the files.

use std::sync::Arc;

use sfu_api::SyncerId;
use tokio::time::Instant;

use super::*;

#[tokio::test]
async fn embedded_conforms() {
    conformance::run(Embedded::in_memory(), Instant::now()).await.expect("conforms");
}

#[tokio::test]
async fn embedded_with_memory_conforms() {
    let dir = tempfile::tempdir().expect("a directory");
    conformance::run(Embedded::open(dir.path()).expect("opens"), Instant::now()).await.expect("conforms");
}

#[tokio::test]
async fn listed_members_keep_their_place_until_unlisted() {
    let registry = Embedded::in_memory();
    let id = |s: &str| SyncerId::new(s).expect("an id");
    let member = |s: &str| Member::new(id(s), format!("http://{s}"), "z");
    registry.list_members(vec![member("a"), member("b")]).await.expect("listed");
    registry.announce(Member::new(id("a"), "http://127.0.0.1:7", "z2"), Instant::now()).await.expect("announced");
    let seen = Arc::clone(&registry.watch().borrow());
    assert_eq!(&*seen.roster[&id("a")].url, "http://127.0.0.1:7", "what it says of itself stands");
    assert!(!seen.roster[&id("a")].listed_only && seen.roster[&id("b")].listed_only);

    registry.list_members(vec![]).await.expect("listed");
    let seen = Arc::clone(&registry.watch().borrow());
    assert_eq!(seen.roster.keys().map(SyncerId::as_str).collect::<Vec<_>>(), ["a"], "announced stays, listed goes");
}

#[tokio::test]
async fn r06_reading_the_same_list_again_changes_nothing() {
    let registry = Embedded::in_memory();
    let id = |s: &str| SyncerId::new(s).expect("an id");
    let listed = || vec![Member { weight: 50, ..Member::new(id("a"), "http://a", "z") }];
    registry.list_members(listed()).await.expect("listed");
    for state in [MemberState::Warming, MemberState::Ready] {
        let me = Member { state, ..Member::new(id("a"), "http://127.0.0.1:7", "z") };
        registry.announce(me, Instant::now()).await.expect("announced");
        assert_eq!(registry.watch().borrow().roster[&id("a")].weight, 50, "the listed share stands");
    }
    let revision = registry.watch().borrow().revision;
    registry.list_members(listed()).await.expect("listed");
    assert_eq!(registry.watch().borrow().revision, revision, "nobody is woken, no slot moves");
}

#[test]
fn an_unknown_key_of_a_list_names_the_nearest_of_that_list() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("f.toml");
    let sfu = "[[sfus]]\nid = \"a\"\nurl = \"https://h:1\"\nregion = \"r\"\ncapcity = 1\n";
    std::fs::write(&path, sfu).expect("written");
    let e = read_sfus(&path).expect_err("unknown");
    assert_eq!((e.line(), e.nearest()), (Some(5), Some("capacity")), "{e}");
    for (text, nearest) in
        [("[[members]]\nid = \"a\"\nurll = \"https://h:1\"\n", "url"), ("alow_shrink = true\n", "allow_shrink")]
    {
        std::fs::write(&path, text).expect("written");
        let e = read_members(&path).expect_err("unknown");
        assert_eq!(e.nearest(), Some(nearest), "{e}");
    }
}

#[test]
fn a_wrong_url_is_shown_without_what_may_be_secret_in_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("f.toml");
    for (url, shown) in [("ftp://me:s3cret@h", false), ("ftp://h/?key=s3cret", false), ("ftp://h/s3cret", true)] {
        std::fs::write(&path, format!("[[members]]\nid = \"a\"\nurl = \"{url}\"\n")).expect("written");
        let e = read_members(&path).expect_err("no https");
        assert_eq!((e.key(), e.to_string().contains("s3cret")), (Some("url"), shown), "{e}");
    }
}

/// Lists of SFUs as files, one after the other: which are taken?
#[test]
fn r06_a_list_that_lost_too_much_is_refused_until_confirmed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("f.toml");
    let text = |from: usize, to: usize| -> String {
        (from..to)
            .map(|n| format!("[[sfus]]\nid = \"s{n}\"\nurl = \"https://h:{}\"\nregion = \"r\"\ncapacity = 1\n", n + 1))
            .collect()
    };
    let allowed = "allow_shrink = true\n";
    let cases = [
        (0, String::new(), true, "nothing was there, nothing is lost"),
        (1, String::new(), false, "truncated"),
        (1, "sfus = []\n".to_owned(), false, "emptied"),
        (1, allowed.to_owned(), false, "truncated after the key"),
        (1, format!("{allowed}sfus = []\n"), true, "emptied on purpose"),
        (3, text(0, 1), true, "a short list may lose any but the last"),
        (4, text(0, 2), true, "half of it"),
        (4, text(0, 1), false, "more than half of it"),
        (5, text(0, 3), true, "less than half of an odd number"),
        (5, text(0, 2), false, "more than half of an odd number"),
        (5, text(0, 2) + &text(10, 20), false, "others in their stead are no comfort"),
        (200, text(0, 200), true, "unchanged"),
        (200, text(0, 99), false, "cut off"),
        (200, text(0, 300), true, "grown"),
        (200, allowed.to_owned() + &text(0, 1), true, "shrunk on purpose"),
    ];
    for (had, after, taken, why) in cases {
        std::fs::write(&path, text(0, had)).expect("written");
        let before = read_sfus(&path).expect("reads").ids;
        std::fs::write(&path, &after).expect("written");
        let checked = read_sfus(&path).expect("reads").check_after(&path, &before);
        assert_eq!(checked.is_ok(), taken, "{why}: {checked:?}");
        if let Err(e) = checked {
            let text = e.to_string();
            assert!(
                text.contains("f.toml") && text.contains("allow_shrink = true"),
                "says where and what to do: {text}"
            );
            assert_eq!(e.key(), Some("sfus"));
        }
    }

    std::fs::write(&path, "[[members]]\nid = \"a\"\nurl = \"https://h:1\"\n").expect("written");
    let before = read_members(&path).expect("reads").ids;
    std::fs::write(&path, "").expect("written");
    let e = read_members(&path).expect("reads").check_after(&path, &before).expect_err("truncated");
    assert!(e.to_string().contains("members = []"), "{e}");
}

#[test]
fn files_are_checked_and_errors_name_the_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("f.toml");
    let write = |text: &str| std::fs::write(&path, text).expect("written");

    write("[[members]]\nid = \"a\"\nurl = \"https://127.0.0.1:1/\"\nzone = \"z9\"\n");
    let members = read_members(&path).expect("reads");
    let members = members.entries;
    assert_eq!((&*members[0].url, members[0].zone.as_str()), ("https://127.0.0.1:1", "z9"));

    write("[[members]]\nid = \"a\"\nurll = \"x\"\n");
    let e = read_members(&path).expect_err("unknown key");
    assert_eq!((e.line(), e.key()), (Some(3), Some("members.urll")));

    write("[[sfus]]\nid = \"\"\nurl = \"x\"\nregion = \"r\"\ncapacity = 1\n");
    assert_eq!(read_sfus(&path).expect_err("empty id").line(), Some(2));
    write("[[sfus]]\nid = \"s\"\nurl = \"x\"\nregion = \"r\"\ncapacity = 1\n");
    assert!(read_sfus(&path).expect_err("no URL").to_string().contains("no http or https URL"));
    let one = "[[sfus]]\nid = \"s\"\nurl = \"https://h:1\"\nregion = \"r\"\ncapacity = 1\n";
    write(&format!("{one}{one}"));
    assert!(read_sfus(&path).expect_err("twice").to_string().contains("listed twice"));
    write(one);
    let entries = read_sfus(&path).expect("reads").entries;
    assert_eq!((entries.len(), &entries[0].zone, entries[0].weight.get()), (1, &None, 1.0));
    write(&format!("{one}zone = \"r-1\"\nweight = 0.5\n"));
    let entry = read_sfus(&path).expect("reads").entries.remove(0);
    assert_eq!((entry.zone.expect("given").as_str(), entry.weight.get()), ("r-1", 0.5));
    for (line, says) in [("zone = \"\"", "must not be empty"), ("weight = 0", "a number from 0.01 to 100, got 0")] {
        write(&format!("{one}{line}\n"));
        let e = read_sfus(&path).expect_err("refused");
        assert!(e.line() == Some(6) && e.to_string().contains(says), "{e}");
    }
}
