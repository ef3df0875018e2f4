//! What whoever collects traces gets to see.

mod common;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use common::{Ca, Server, get, quick_limits, settled, soon, until};
use parking_lot::Mutex;
use pool::{Lane, Origin};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::set_default;
use tracing::{Instrument, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

type Fields = BTreeMap<&'static str, String>;

/// Notes every span of the pool when it closes: the names from the root to it, and its fields.
#[derive(Debug, Clone, Default)]
struct Notes(Arc<Mutex<Vec<(String, Fields)>>>);

struct Read<'a>(&'a mut Fields);

impl Visit for Read<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}").trim_matches('"').to_owned());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Notes {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::new();
        attributes.record(&mut Read(&mut fields));
        context.span(id).expect("it is new").extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let span = context.span(id).expect("it is open");
        values.record(&mut Read(span.extensions_mut().get_mut::<Fields>().expect("made with it")));
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let span = context.span(&id).expect("it is closing");
        if span.metadata().target() != "pool" {
            return;
        }
        let path: Vec<_> = span.scope().from_root().map(|span| span.name()).collect();
        let fields = span.extensions_mut().remove::<Fields>().unwrap_or_default();
        self.0.lock().push((path.join(" > "), fields));
    }
}

// === impl Notes ===

impl Notes {
    /// What closed since the last time, in few words.
    fn take(&self) -> Vec<String> {
        let line = |(path, fields): (String, Fields)| {
            let shown = fields.iter().filter(|(name, _)| **name != "origin");
            let shown: Vec<_> = shown.map(|(name, value)| format!("{name}={value}")).collect();
            format!("{path} {}", shown.join(" "))
        };
        std::mem::take(&mut *self.0.lock()).into_iter().map(line).collect()
    }
}

async fn ask(lane: &Lane, origin: &Origin) -> Result<(), pool::Error> {
    lane.origin(origin).send(get("/ok"), soon()).await?.into_body().bytes(64).await?;
    until("the connection is back", || lane.snapshot().idle == 1).await;
    Ok(())
}

#[tokio::test]
async fn a_request_and_a_dial_are_spans_and_their_stages_are_children() {
    let ca = Ca::new();
    let (server, lane) = (Server::https(&ca, &["http/1.1"]).await, ca.lane(quick_limits()));
    let notes = Notes::default();
    let listening = set_default(tracing_subscriber::registry().with(notes.clone()));

    ask(&lane, &server.origin).await.expect("answered");
    let (dial, request): (Vec<_>, Vec<_>) = notes.take().into_iter().partition(|line| line.starts_with("pool.dial"));
    assert_eq!(
        dial,
        [
            "pool.dial > pool.stage stage=tcp",
            "pool.dial > pool.stage stage=tls",
            "pool.dial > pool.stage stage=handshake",
            "pool.dial lane=test outcome=connected",
        ]
    );
    assert_eq!(
        request,
        [
            "pool.request > pool.stage stage=queue",
            "pool.request > pool.stage reused=false stage=send",
            "pool.request > pool.stage stage=response",
            "pool.request lane=test outcome=answered",
        ]
    );

    // A connection that is had at once was never waited for. The caller's own span is the parent.
    ask(&lane, &server.origin).instrument(tracing::info_span!("caller")).await.expect("answered");
    assert_eq!(
        notes.take(),
        [
            "caller > pool.request > pool.stage reused=true stage=send",
            "caller > pool.request > pool.stage stage=response",
            "caller > pool.request lane=test outcome=answered",
        ]
    );

    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("port").local_addr().expect("address");
    let nobody = Origin::parse(&format!("https://{nobody}")).expect("origin");
    ask(&lane, &nobody).await.expect_err("refused");
    settled(&lane).await;
    let refused = notes.take();
    for line in [
        "pool.dial > pool.stage stage=tcp",
        "pool.dial lane=test outcome=refused",
        "pool.request > pool.stage stage=queue",
        "pool.request lane=test outcome=refused",
    ] {
        assert!(refused.iter().any(|seen| seen == line), "{line}: {refused:?}");
    }
    assert_eq!(refused.len(), 4, "{refused:?}");
    drop(listening);

    // Nobody listens at this level: no span is made at all.
    let quiet = Notes::default();
    let _listening = set_default(tracing_subscriber::registry().with(quiet.clone().with_filter(LevelFilter::INFO)));
    ask(&lane, &server.origin).await.expect("answered");
    assert!(quiet.take().is_empty() && notes.take().is_empty());
}
