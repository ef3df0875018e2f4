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

#[test]
fn files_are_checked_and_errors_name_the_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("f.toml");
    let write = |text: &str| std::fs::write(&path, text).expect("written");

    write("[[members]]\nid = \"a\"\nurl = \"https://127.0.0.1:1/\"\nzone = \"z9\"\n");
    let members = read_members(&path).expect("reads");
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
    assert_eq!(read_sfus(&path).expect("reads").len(), 1);
}
