//! Which connections are free, beside the simplest list that could say so.

use super::*;

proptest! {
    /// A stack, and whoever ends leaves it from anywhere.
    #[test]
    fn free_connections_go_out_newest_first_whoever_ended_between(
        steps in prop::collection::vec((0..4_u8, any::<prop::sample::Index>()), 1..200),
    ) {
        let tuning = Tuning::default();
        let mut conns = Conns::new(0);
        let now = Instant::now();
        let (mut stack, mut out) = (Vec::new(), Vec::new());
        for (step, which) in steps {
            match step {
                0 => stack.push(conns.insert(Pipe::new(false), false, now + Duration::from_secs(60), now, &tuning)),
                1 => {
                    let taken = conns.take(&tuning, &mut |_| {});
                    prop_assert_eq!(taken.as_ref().map(|taken| taken.key), stack.pop());
                    out.extend(taken);
                }
                2 if !out.is_empty() => {
                    let taken = out.swap_remove(which.index(out.len()));
                    prop_assert!(conns.give_back(taken.key, Some(taken.channel), Verdict::Answered, now).is_none());
                    stack.push(taken.key);
                }
                3 if !stack.is_empty() => {
                    let key = stack.remove(which.index(stack.len()));
                    prop_assert!(conns.remove(key).is_some());
                }
                _ => {}
            }
        }
        let left: Vec<_> = std::iter::from_fn(|| conns.take(&tuning, &mut |_| {})).map(|taken| taken.key).collect();
        stack.reverse();
        prop_assert_eq!(left, stack);
    }
}
