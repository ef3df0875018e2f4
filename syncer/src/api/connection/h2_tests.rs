//! HTTP/2 by hand-made frames, in time that is skipped: silence, age, and heads without end.

use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout_at};

use super::HttpMetrics;
use super::tests::{Turned, connected, turned};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Types of frames.
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

// Flags.
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A request; its header block ends with `flags`.
fn get(flags: u8, stream: u32, path: &str) -> Vec<u8> {
    let length = u8::try_from(path.len()).expect("short");
    // Of the static table: GET, http, a path, the authority.
    let block = [&[0x82, 0x86, 0x04, length], path.as_bytes(), &[0x01, 1, b'x']].concat();
    frame(HEADERS, END_STREAM | flags, stream, &block)
}

/// Which PINGs a client answers.
#[derive(Clone, Copy, Debug)]
enum Pongs {
    All,
    /// All but the one by which h2 finds out what was still on its way when it said GOAWAY.
    NotTheLast,
    None,
}

const LAST_PING: [u8; 8] = [0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];

/// No connection of these tests lasts so long.
const FOR_EVER: Duration = Duration::from_secs(3 * 3_600);

/// What a server said and after how many seconds; at last `closed`.
type Said = Vec<(u64, String)>;

/// The client says this and no more, unless it answers PINGs.
async fn said(levers: Turned<'_>, frames: &[Vec<u8>], pongs: Pongs) -> (Said, HttpMetrics) {
    let (mut stream, metrics, task) = connected(turned(levers));
    let began = Instant::now();
    let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frames.concat()].concat();
    stream.write_all(&hello).await.expect("written");
    let mut said = Vec::new();
    loop {
        let mut head = [0; 9];
        let by = began + FOR_EVER;
        let Ok(read) = timeout_at(by, stream.read_exact(&mut head)).await else { panic!("it stays: {said:?}") };
        let at = Instant::now().saturating_duration_since(began).as_secs();
        if read.is_err() {
            said.push((at, "closed".to_owned()));
            task.await.expect("no panic");
            return (said, metrics);
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.expect("its payload");
        match head[3] {
            HEADERS => said.push((at, if payload[0] == 0x88 { "200" } else { "head" }.to_owned())),
            GOAWAY => said.push((at, format!("goaway {}", payload[7]))),
            PING if head[4] & ACK == 0 => {
                let answers = match pongs {
                    Pongs::All => true,
                    Pongs::NotTheLast => payload != LAST_PING,
                    Pongs::None => false,
                };
                if answers {
                    stream.write_all(&frame(PING, ACK, 0, &payload)).await.ok(); // it may be gone
                }
            }
            _ => {}
        }
    }
}

/// When this was said first.
fn first(said: &Said, what: &str) -> Option<u64> {
    said.iter().find(|(_, said)| said == what).map(|(at, _)| *at)
}

#[tokio::test(start_paused = true)]
async fn every_way_to_keep_an_http2_connection_has_an_end() {
    let whole = |path: &str| get(END_HEADERS, 1, path);
    let half = |stream: u32| get(0, stream, "/small");
    // What is sent, which PINGs are answered, what is said before the end, seconds it may last, how it is counted.
    type Case = (Vec<Vec<u8>>, Pongs, Option<&'static str>, RangeInclusive<u64>, Option<&'static str>);
    let cases: [Case; 9] = [
        (vec![], Pongs::All, None, 5..=8, Some("slow_head")),
        (vec![half(1)], Pongs::All, None, 5..=8, Some("slow_head")),
        // A PING after 20 s of silence, and 10 s to answer it, be a request under way or none.
        (vec![whole("/small")], Pongs::None, Some("200"), 30..=33, None),
        (vec![whole("/endless")], Pongs::None, Some("200"), 30..=33, None),
        (vec![whole("/small"), half(3)], Pongs::None, Some("200"), 30..=33, None),
        // The answer comes in the middle of the head.
        (vec![whole("/small"), half(3)], Pongs::All, Some("200"), 20..=23, Some("protocol")),
        // Who answers is there, and is asked to leave for nobody uses it, or for its age; and must.
        (vec![whole("/small")], Pongs::All, Some("goaway 0"), 75..=80, None),
        (vec![whole("/small")], Pongs::NotTheLast, Some("goaway 0"), 76..=100, None),
        (vec![whole("/endless")], Pongs::All, Some("goaway 0"), 35 * 60..=66 * 60, Some("too_old")),
    ];
    for (at, (frames, pongs, before, wanted, why)) in cases.into_iter().enumerate() {
        let (said, metrics) = said(&[], &frames, pongs).await;
        let (closed, _) = said.last().expect("closed");
        assert!(wanted.contains(closed), "row {at}: {said:?}");
        assert!(before.is_none_or(|what| first(&said, what).is_some()), "row {at}: {said:?}");
        for cause in ["slow_head", "protocol", "too_old"] {
            let counted = u64::from(why == Some(cause));
            assert_eq!(metrics.refusals(cause), counted, "row {at}: {cause}, {said:?}");
        }
    }
}

/// Within a header block nothing else may be sent, and so no answer to a PING: however it drips, it lasts as long as
/// silence does, and has few frames.
#[tokio::test(start_paused = true)]
async fn r20_a_header_block_behind_a_request_lasts_no_longer_than_silence_however_it_drips() {
    let begun = get(0, 3, "/small");
    let piece = frame(CONTINUATION, 0, 3, &[0x00, 1, b'a', 1, b'b']);
    let long = frame(CONTINUATION, 0, 3, &[b'y'; 1_000]);
    let bytes = |frame: &[u8]| frame.iter().map(|byte| vec![*byte]).collect::<Vec<_>>();
    // What is sent before and then bit by bit, seconds in between, seconds it may last, whether it is too many frames.
    type Case = (&'static str, Vec<u8>, Vec<Vec<u8>>, u64, RangeInclusive<u64>, bool);
    let cases: [Case; 5] = [
        ("/small", begun.clone(), vec![piece.clone(); 5], 6, 30..=33, false),
        ("/small", begun.clone(), vec![piece; 6], 1, 6..=7, true),
        ("/small", begun.clone(), bytes(&long), 1, 30..=33, false),
        ("/endless", begun.clone(), bytes(&long), 1, 30..=33, false),
        ("/endless", vec![], bytes(&begun), 3, 30..=33, false),
    ];
    for (at, (path, before, bits, every_s, wanted, many)) in cases.into_iter().enumerate() {
        let (mut stream, metrics, task) = connected(turned(&[]));
        let began = Instant::now();
        let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &get(END_HEADERS, 1, path), &before].concat();
        stream.write_all(&hello).await.expect("written");
        let (mut bits, mut said) = (bits.into_iter(), Vec::new());
        let mut drip = tokio::time::interval_at(began + Duration::from_secs(every_s), Duration::from_secs(every_s));
        loop {
            tokio::select! {
                read = stream.read_buf(&mut said) => if !read.is_ok_and(|n| n > 0) { break },
                _ = drip.tick() => match bits.next() {
                    Some(bit) => drop(stream.write_all(&bit).await), // it may be gone
                    None => drip.reset_after(FOR_EVER),
                },
            }
        }
        task.await.expect("no panic");
        let lasted = Instant::now().saturating_duration_since(began).as_secs();
        assert!(wanted.contains(&lasted), "row {at}: {lasted} s");
        assert_eq!(metrics.refusals("protocol"), u64::from(many), "row {at}");
    }
}

/// One that nobody uses and that does not go although it answers is not waited for longer than one that is in use.
#[tokio::test(start_paused = true)]
async fn r20_an_http2_connection_that_idles_has_the_time_to_leave_that_its_lever_says() {
    let mut stayed = Vec::new();
    for time in ["1s", "6s", "600s"] {
        let levers = [("http.leave_timeout", time)];
        let (said, metrics) = said(&levers, &[get(END_HEADERS, 1, "/small")], Pongs::NotTheLast).await;
        let (closed, _) = said.last().expect("closed");
        stayed.push((closed - first(&said, "goaway 0").expect("it is told to go"), metrics.refusals("too_old")));
    }
    let [(short, 1), (longer, 1), (by_ping, 0)] = stayed[..] else { panic!("{stayed:?}") };
    assert!((1..=3).contains(&short) && (6..=8).contains(&longer) && by_ping > longer, "{stayed:?}");
}

/// Connections that are as old as each other leave at different times; what was asked before is answered, and then they
/// close at once.
#[tokio::test(start_paused = true)]
async fn at_its_age_an_http2_connection_is_told_to_go_and_its_requests_are_finished() {
    let mut left = std::collections::BTreeSet::new();
    for _ in 0..12 {
        let (said, metrics) = said(&[("http.age", "20s")], &[get(END_HEADERS, 1, "/slow")], Pongs::All).await;
        let goaway = first(&said, "goaway 0").expect("it is told to go");
        assert!((20..=43).contains(&goaway), "after its age, and as much again at most: {said:?}");
        let end = said.iter().skip_while(|(at, _)| *at < 60).map(|(_, what)| what.as_str()).collect::<Vec<_>>();
        assert_eq!((end, said.last().expect("closed").0), (vec!["200", "closed"], 60), "{said:?}");
        assert_eq!(metrics.refusals("too_old"), 0);
        left.insert(goaway);
    }
    assert!(left.len() > 1, "all left at the same time: {left:?}");
}
