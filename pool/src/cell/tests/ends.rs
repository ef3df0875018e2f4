//! How it ends: everybody is served or told once the peer behaves, and a drain leaves nothing.

use super::*;

impl Model {
    /// The peer behaves from now on: everyone in line must be served without help of their deadlines.
    fn serve_everyone(&mut self) {
        for at in 0..self.conns.len() {
            self.speaks(at, true);
        }
        for _ in 0..200 {
            if self.lines.iter().all(VecDeque::is_empty) && self.woken.is_empty() {
                return;
            }
            self.apply(Op::Look(0));
            self.apply(Op::GrantSlot);
            self.apply(Op::DialWorks { at: 0, shared: false });
            self.apply(Op::Answer { at: 0, verdict: Verdict::Answered });
            let open = |pipe: &Pipe| pipe.is_open();
            let dead: Vec<_> = self.conns.iter().filter(|(_, pipe)| !open(pipe)).map(|(key, _)| *key).collect();
            for key in dead {
                self.conns.remove(&key);
                self.step(Event::Closed(key), None);
            }
            self.check();
            // Retired connections close once nobody uses them.
            let used: HashSet<_> = self.leases.iter().map(|(key, ..)| *key).collect();
            if self.leases.is_empty() && self.dials.is_empty() && !self.conns.is_empty() {
                let key = *self.conns.keys().find(|key| !used.contains(key)).expect("all are unused");
                self.conns.remove(&key);
                self.step(Event::Closed(key), None);
            }
            self.pass(Duration::from_millis(1));
        }
        panic!("still in line: {:?}", self.lines);
    }

    /// Requests and dials that are under way end well.
    fn come_home(&mut self) {
        while !self.leases.is_empty() || !self.dials.is_empty() {
            self.apply(Op::Answer { at: 0, verdict: Verdict::Answered });
            self.apply(Op::DialWorks { at: 0, shared: false });
            self.check();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn r04_whoever_waits_is_served_or_told_once_the_peer_behaves(ops in prop::collection::vec(op(), 1..60)) {
        let mut model = Model { slow: true, ..Model::new() };
        for op in ops {
            model.apply(op);
        }
        model.serve_everyone();
        model.check();
    }

    #[test]
    fn a_drain_takes_nobody_in_serves_or_tells_those_in_line_and_keeps_no_connection(
        before in prop::collection::vec(op(), 0..60),
        refuse in any::<bool>(),
        after in prop::collection::vec(op(), 0..30),
    ) {
        let mut model = Model { slow: true, ..Model::new() };
        for op in before {
            model.apply(op);
        }
        model.drain(if refuse { Intake::Refuse } else { Intake::ServeLine });
        model.check();
        for op in after {
            model.apply(op);
            model.check();
        }
        model.serve_everyone();
        model.come_home();
        assert_eq!((model.cell.conns.usable(), model.cell.counts().dialling), (0, 0));
    }
}
