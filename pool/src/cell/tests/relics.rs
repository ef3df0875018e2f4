//! What outlives a life of the cell, and comes back into the next one.

use super::*;

/// What outlives a life of the cell.
#[derive(Debug)]
pub(super) enum Relic {
    Caller(Ticket),
    Dial { fresh: bool, epoch: Epoch, works: bool },
    Lease(ConnKey, Pipe),
    Conn(ConnKey),
}

impl Model {
    /// A panic, and what the shell makes of it.
    pub(super) fn panic(&mut self) {
        let torn = self.cell.renew();
        let mut woken: Vec<_> = torn.into_waiters().collect();
        let mut waiting: Vec<_> = self.lines.iter().flatten().map(|(waiter, ..)| *waiter).collect();
        woken.sort_unstable();
        waiting.sort_unstable();
        assert_eq!(woken, waiting, "some are not told");
        self.relics.extend(self.woken.drain(..).map(|(_, ticket)| Relic::Caller(ticket)));
        for (waiter, ticket, _) in self.lines.iter_mut().flat_map(|line| line.drain(..)) {
            self.answered.insert(waiter);
            self.relics.push(Relic::Caller(ticket));
        }
        let dials = self.dials.drain(..).map(|(fresh, epoch)| Relic::Dial {
            fresh,
            epoch,
            works: epoch.life.is_multiple_of(2),
        });
        self.relics.extend(dials);
        self.relics.extend(self.leases.drain(..).map(|(key, pipe, _)| Relic::Lease(key, pipe)));
        self.relics.extend(self.conns.drain().map(|(key, _)| Relic::Conn(key)));
        (self.queued, self.queued_fresh, self.armed) = (0, 0, Vec::new());
    }

    /// Whatever it is, the new life takes no notice.
    pub(super) fn late(&mut self, relic: Relic) {
        let before = self.cell.counts();
        let event = match relic {
            Relic::Caller(ticket) => {
                assert!(matches!(self.cell.look(ticket), Look::Gone) && self.cell.leave(ticket).is_none());
                Event::Settle
            }
            Relic::Dial { fresh, epoch, works: true } => {
                Event::Connected { fresh, epoch, channel: Pipe::new(true), shared: true, took: DIAL_TIME, jitter: 0.5 }
            }
            Relic::Dial { fresh, epoch, works: false } => {
                let dial = FailedDial { fresh, epoch, error: "refused", blame: Blame::Host, jitter: 1.0 };
                Event::DialFailed { dial, took: DIAL_TIME }
            }
            Relic::Lease(key, pipe) => {
                let (verdict, channel) = (Verdict::Answered, (!pipe.shared).then_some(pipe));
                Event::Return { key, channel, verdict, keep_alive: None, held: None }
            }
            Relic::Conn(key) => Event::Closed(key),
        };
        self.step(event, None);
        let after = self.cell.counts();
        assert_eq!((before.permits, before.streams), (after.permits, after.streams), "a relic counts");
    }
}
