//! Limits that are turned while news comes.

use super::*;

#[test]
fn r20_what_is_kept_follows_the_levers_at_the_next_news_or_sweep() {
    let levers = Levers::new();
    let set = |name: &str, value: serde_json::Value| drop(levers.set(name, &value, "test", None, 0).expect("in range"));
    let (hub, engine, start) = (Hub::new(1, WatchLevers::register(&levers)), Engine::default(), Instant::now());
    let tell = |hub: &Hub, calls: std::ops::Range<u8>| {
        calls.for_each(|call| hub.take(&engine.change(call, (1, 1), &[call % 2], 1), start));
    };
    tell(&hub, 0..200);
    assert_eq!(counted(&hub), 200);
    let cursor = watch(&hub, 0, None).expect("watches").now();
    set("watch.events_per_gateway_max", 64.into());
    tell(&hub, 200..201);
    assert_eq!(counted(&hub), 64 + 100, "the log with news is trimmed");
    hub.sweep(start);
    assert_eq!(counted(&hub), 64 + 64, "and then the other");
    set("watch.events_max", 64.into());
    tell(&hub, 201..202);
    assert!(counted(&hub) <= 64, "{}", counted(&hub));
    assert_eq!(hub.held.load(Ordering::Relaxed), counted(&hub));
    assert!(watch(&hub, 0, Some(cursor)).is_ok(), "what is newest is there");
    set("watch.resume_window", "10s".into());
    hub.sweep(start + Duration::from_secs(10));
    assert_eq!((counted(&hub), watch(&hub, 0, Some(cursor)).err()), (0, Some(CursorError::TooOld)));
    set("watch.events_per_gateway_max", 1_000.into());
    set("watch.events_max", 1_000.into());
    tell(&hub, 0..200);
    assert_eq!(counted(&hub), 200, "a lever that grows has room again");
}
