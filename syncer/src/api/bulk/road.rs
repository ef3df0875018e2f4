//! One stream: lines are gathered as they arrive, done together, and told.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use sfu_api::{Slot, SyncerId};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::result::{OperationResult, Results};
use super::round::Begun;
use super::worker::{Foreign, Worker};
use super::{Do, Marker, Operation, Preferences};
use crate::api::body::{LINE_BYTES_MAX, Lines, Next, object};
use crate::api::route::Route;
use crate::api::{ApiError, App, Caller};
use crate::engine::{Join, Leave, What, Write};
use crate::ownership::Owner;

/// Lines done together: so many that a lock of call state serves some of them, so few that it is held for
/// ~200 µs at most even if all are of one guild.
const TOGETHER_MAX: usize = 256;
/// Bytes of lines done together: those of 256 long ones.
const TOGETHER_BYTES_MAX: usize = 64 * 1024;
/// Lines waiting for one owner: two batches, so that the next one fills while one is under way.
const FOREIGN_LINES_MAX: usize = 2 * super::worker::BATCH_LINES_MAX;

/// One stream of operations.
pub(super) struct Road {
    pub(super) app: Arc<App>,
    pub(super) caller: Caller,
    pub(super) redirect: bool,
    pub(super) out: mpsc::Sender<Bytes>,
    results: Results,
    /// Lines that have no result yet.
    gathered: Gathered,
    workers: HashMap<SyncerId, (Arc<str>, mpsc::Sender<Foreign>)>,
    tasks: JoinSet<()>,
    /// The round that this stream began.
    pub(super) begun: Option<Begun>,
}

/// Lines of one moment, in their order.
#[derive(Default)]
struct Gathered {
    lines: Vec<Line>,
    writes: Vec<Write>,
    bytes: usize,
}

/// A line that was read.
enum Line {
    /// Its operation is the next of the writes; what comes back with the result.
    Ours(Option<String>),
    /// It is wrong, or not ours.
    Refused(Box<OperationResult>),
    /// Another owner's, from whom its result comes.
    Elsewhere,
}

/// A line that takes others to be done.
enum Aside {
    Marker(Marker),
    Foreign(Arc<Owner>, Foreign),
}

/// The client no longer reads.
pub(super) struct Gone;

// === impl Road ===

impl Road {
    pub(super) fn new(app: Arc<App>, caller: Caller, prefers: Preferences, out: mpsc::Sender<Bytes>) -> Self {
        Self {
            app,
            caller,
            redirect: prefers.redirect,
            out,
            results: Results::new(prefers.minimal),
            gathered: Gathered::default(),
            workers: HashMap::new(),
            tasks: JoinSet::new(),
            begun: None,
        }
    }

    pub(super) async fn run(mut self, mut lines: Lines) {
        let out = self.out.clone();
        let stop = self.app.stop.clone();
        tokio::select! {
            _ = self.drive(&mut lines) => {}
            () = out.closed() => {}
            () = stop.cancelled() => {}
        }
    }

    async fn drive(&mut self, lines: &mut Lines) -> Result<(), Gone> {
        let idle = self.app.limits.bulk_idle_timeout.get();
        let mut in_turn = 0;
        loop {
            let next = match lines.buffered() {
                Some(next) => next,
                None if self.is_idle() || lines.has_ended() => lines.next(idle).await,
                None => {
                    // No whole line more for now: what has come is done and told before we wait for one.
                    if !lines.arrived() {
                        self.flush().await?;
                    }
                    tokio::task::yield_now().await; // also if no line was among it
                    continue;
                }
            };
            if self.is_withdrawn(&next) {
                break;
            }
            match next {
                Next::End => break,
                Next::TooLong => self.refuse(None, ApiError::line_too_long(LINE_BYTES_MAX)),
                Next::Line(line) => {
                    self.gathered.bytes += line.len();
                    if let Some(aside) = self.read(&line) {
                        self.see_to(*aside).await?;
                    }
                }
            }
            if self.gathered.is_full() {
                self.perform();
            }
            if self.results.is_full() {
                self.tell().await?;
            }
            in_turn += 1;
            if in_turn == TOGETHER_MAX {
                in_turn = 0;
                tokio::task::yield_now().await; // others have lines too
            }
        }
        self.settle().await
    }

    /// Whether the caller is no longer who it was when the stream was opened; then the line is told so, and is the last.
    /// Lines that are done together are looked at once, with the first of them.
    fn is_withdrawn(&mut self, next: &Next) -> bool {
        if !self.gathered.lines.is_empty() || *next == Next::End || self.app.auth.stands_by(&mut self.caller) {
            return false;
        }
        let op = if let Next::Line(line) = next { op_of(line) } else { None };
        self.refuse(op, ApiError::caller_changed());
        true
    }

    /// Whether nothing is left to do or to tell.
    fn is_idle(&self) -> bool {
        self.gathered.lines.is_empty() && self.results.is_empty()
    }

    /// Waits until all that was handed to other owners is done, and tells it.
    pub(super) async fn settle(&mut self) -> Result<(), Gone> {
        self.flush().await?;
        self.workers.clear();
        while self.tasks.join_next().await.is_some() {}
        Ok(())
    }

    /// Does and tells what has come.
    pub(super) async fn flush(&mut self) -> Result<(), Gone> {
        self.perform();
        self.tell().await
    }

    async fn tell(&mut self) -> Result<(), Gone> {
        if self.results.is_empty() {
            return Ok(());
        }
        self.out.send(self.results.take()).await.map_err(|_| Gone)
    }

    /// Adds a result; what was gathered has its own by now.
    pub(super) fn result(&mut self, result: &OperationResult) {
        self.results.push(result);
    }

    fn refuse(&mut self, op: Option<String>, e: ApiError) {
        let result = OperationResult::failed(op, e, self.app.engine.retry_span_min());
        self.gathered.lines.push(Line::Refused(Box::new(result)));
    }

    /// Takes a line in, unless it is one to wait for.
    fn read(&mut self, line: &[u8]) -> Option<Box<Aside>> {
        let operation: Operation = match object(line) {
            Ok(operation) => operation,
            Err(e) => {
                if let Ok(marker) = object(line) {
                    return Some(Box::new(Aside::Marker(marker)));
                }
                self.refuse(op_of(line), ApiError::invalid(format!("the line is not an operation: {e}")));
                return None;
            }
        };
        match self.app.route(&operation.guild, &self.caller) {
            Ok(Route::Here(slot)) => self.gather(slot, operation),
            Ok(Route::There(owner)) if self.redirect => {
                self.refuse(operation.op, ApiError::not_owner(Some(Arc::clone(&owner.url))));
            }
            Ok(Route::There(owner)) => {
                self.gathered.lines.push(Line::Elsewhere);
                return Some(Box::new(Aside::Foreign(
                    owner,
                    Foreign { op: operation.op, line: Bytes::copy_from_slice(line) },
                )));
            }
            Err(e) => self.refuse(operation.op, e),
        }
        None
    }

    async fn see_to(&mut self, aside: Aside) -> Result<(), Gone> {
        match aside {
            Aside::Marker(marker) => self.mark(marker).await,
            Aside::Foreign(owner, foreign) => self.there(&owner, foreign).await,
        }
    }

    fn gather(&mut self, slot: Slot, operation: Operation) {
        let Operation { op, what, guild, call, session, seq, kind, region, token } = operation;
        let gateway = self.caller.id.clone();
        self.gathered.lines.push(Line::Ours(op));
        let what = match what {
            Do::Join => {
                What::Join { join: Join { guild, call, session, gateway, seq, kind, region }, credential: token }
            }
            Do::Leave => What::Leave(Leave { guild, call, session, gateway, seq }),
        };
        self.gathered.writes.push(Write::new(slot, what));
    }

    /// Does what was gathered.
    pub(super) fn perform(&mut self) {
        let Gathered { lines, writes, bytes } = &mut self.gathered;
        let mut done = self.app.engine.write(writes, Instant::now());
        self.results.reserve(lines.len());
        for line in lines.drain(..) {
            match line {
                Line::Refused(result) => self.results.push(&result),
                Line::Elsewhere => self.results.end_run(),
                Line::Ours(op) => match done.next().expect("each write has its answer") {
                    Ok(answer) => self.results.done(op, answer),
                    Err(refusal) => {
                        let span_min = self.app.engine.retry_span_min();
                        self.results.push(&OperationResult::failed(op, refusal.into(), span_min));
                    }
                },
            }
        }
        drop(done);
        writes.clear();
        *bytes = 0;
    }

    async fn there(&mut self, owner: &Arc<Owner>, foreign: Foreign) -> Result<(), Gone> {
        let known = self.workers.get(&owner.id).filter(|(url, _)| *url == owner.url);
        let worker = match known {
            Some((_, worker)) => worker.clone(),
            None => {
                let (to, from) = mpsc::channel(FOREIGN_LINES_MAX);
                let worker = Worker {
                    app: Arc::clone(&self.app),
                    caller: self.caller.clone(),
                    owner: Arc::clone(owner),
                    out: self.out.clone(),
                };
                self.tasks.spawn(worker.run(from));
                self.workers.insert(owner.id.clone(), (Arc::clone(&owner.url), to.clone()));
                to
            }
        };
        match worker.try_send(foreign) {
            Err(TrySendError::Full(foreign)) => {
                // It may take a while: ours do not wait for it.
                self.flush().await?;
                worker.send(foreign).await.map_err(|_| Gone)
            }
            sent => sent.map_err(|_| Gone),
        }
    }
}

// === impl Gathered ===

impl Gathered {
    fn is_full(&self) -> bool {
        self.lines.len() >= TOGETHER_MAX || self.bytes >= TOGETHER_BYTES_MAX
    }
}

/// The op id of a line that is otherwise wrong, if it can be found.
fn op_of(line: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(line).ok()?;
    value.get("op")?.as_str().map(str::to_owned)
}
