use proptest::prelude::*;

use super::*;

/// Answers everybody in line, the first first.
fn serve(line: &mut Waiters<u32, &'static str>) -> Vec<u32> {
    std::iter::from_fn(|| line.front().and_then(|key| line.answer(key, "served"))).collect()
}

#[tokio::test(start_paused = true)]
async fn the_line_is_first_in_first_out_and_cancel_leaves_no_hole() {
    let now = Instant::now();
    let mut line = Waiters::new(0);
    let keys: Vec<_> = (0..5).map(|n| line.push_back(n, now + Duration::from_secs(1), now)).collect();
    assert_eq!(line.leave(keys[2]), Some(2));
    assert_eq!(line.leave(keys[2]), None);
    let other = line.push_back(9, now, now);
    assert_eq!(line.leave(keys[2]), None, "a key must not outlive its waiter");
    assert!(matches!(line.look(keys[2]), Look::Gone));
    assert_eq!(line.expired(now), Some(other));
    assert_eq!(line.answer(other, "late"), Some(9));
    assert_eq!(line.answer(other, "late"), None, "answered once");
    assert_eq!(serve(&mut line), [0, 1, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_waits_for_its_owner_and_for_nobody_else() {
    let now = Instant::now();
    let mut line = Waiters::new(0);
    let keys: Vec<_> = (0..3).map(|n| line.push_back(n, now + Duration::from_secs(1), now)).collect();
    assert!(matches!(line.look(keys[0]), Look::Waiting(0)));
    assert_eq!(line.answer(keys[0], "served"), Some(0));
    assert_eq!((line.len(), line.front()), (2, Some(keys[1])), "out of line though nobody has looked");
    let newcomer = line.push_back(3, now, now);
    assert!(matches!(line.look(newcomer), Look::Waiting(3)));
    assert!(matches!(line.look(keys[0]), Look::Answered("served")));
    assert!(matches!(line.look(keys[0]), Look::Gone), "told once");
    assert_eq!(line.answer(keys[1], "served"), Some(1));
    assert_eq!(line.leave(keys[1]), None, "it is not in line");
    assert!(matches!(line.look(keys[1]), Look::Answered("served")), "but told");
}

#[tokio::test(start_paused = true)]
async fn deadlines_surface_in_their_order_whatever_the_order_of_joining() {
    let now = Instant::now();
    let mut line = Waiters::new(0);
    let mut keys = Vec::new();
    for (n, seconds) in [5, 9, 3, 9, 1, 7, 20].into_iter().enumerate() {
        keys.push(line.push_back(n, now + Duration::from_secs(seconds), now));
    }
    line.leave(keys[2]);
    line.leave(keys[1]);
    let at = |seconds| Some(now + Duration::from_secs(seconds));
    let mut told = Vec::new();
    while let Some(next) = line.next_deadline() {
        let key = line.expired(next).expect("due");
        told.extend(line.answer(key, "late").map(|n| (n, Some(next))));
    }
    assert_eq!(told, [(4, at(1)), (0, at(5)), (5, at(7)), (3, at(9)), (6, at(20))]);
}

/// What happens to a line; which caller it happens to is drawn from all who have ever come.
#[derive(Debug, Clone, Copy)]
enum Step {
    Join { patience_s: u64 },
    Leave(usize),
    Look(usize),
    Answer(usize),
    AnswerFirst,
    Expire,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4_u64).prop_map(|patience_s| Step::Join { patience_s }),
        3 => any::<usize>().prop_map(Step::Leave),
        2 => any::<usize>().prop_map(Step::Look),
        1 => any::<usize>().prop_map(Step::Answer),
        1 => Just(Step::AnswerFirst),
        1 => Just(Step::Expire),
    ]
}

/// A caller as a list of all who have ever come has it.
struct Known {
    key: WaiterKey,
    deadline: Instant,
    waits: bool,
    told: bool,
}

/// Whoever is to be answered is answered, and what wakes it is its own.
fn answered(line: &mut Waiters<usize, usize>, known: &mut [Known], at: usize) {
    let woken = line.answer(known[at].key, at);
    assert_eq!(woken, known[at].waits.then_some(at));
    if woken.is_some() {
        (known[at].waits, known[at].told) = (false, true);
    }
}

proptest! {
    #[test]
    fn a_line_is_what_a_list_of_all_who_ever_came_says(steps in prop::collection::vec(step(), 1..400)) {
        let now = Instant::now();
        let mut line: Waiters<usize, usize> = Waiters::new(0);
        let mut known: Vec<Known> = Vec::new();
        for step in steps {
            match step {
                Step::Join { patience_s } => {
                    let deadline = now + Duration::from_secs(patience_s);
                    let key = line.push_back(known.len(), deadline, now);
                    known.push(Known { key, deadline, waits: true, told: false });
                }
                Step::Leave(any) if !known.is_empty() => {
                    let at = any % known.len();
                    assert_eq!(line.leave(known[at].key), known[at].waits.then_some(at));
                    known[at].waits = false;
                }
                Step::Look(any) if !known.is_empty() => {
                    let at = any % known.len();
                    let told = mem::take(&mut known[at].told);
                    match line.look(known[at].key) {
                        Look::Waiting(waiter) => assert!(known[at].waits && *waiter == at),
                        Look::Answered(answer) => assert!(told && answer == at),
                        Look::Gone => assert!(!told && !known[at].waits),
                    }
                }
                Step::Answer(any) if !known.is_empty() => {
                    let at = any % known.len();
                    answered(&mut line, &mut known, at);
                }
                Step::AnswerFirst => {
                    let first = known.iter().position(|caller| caller.waits);
                    assert_eq!(line.front(), first.map(|at| known[at].key));
                    first.into_iter().for_each(|at| answered(&mut line, &mut known, at));
                }
                Step::Expire => {
                    let earliest = known.iter().filter(|caller| caller.waits).map(|caller| caller.deadline).min();
                    if let Some(key) = earliest.and_then(|earliest| line.expired(earliest)) {
                        let due = known.iter().position(|caller| caller.key == key).expect("it came");
                        assert_eq!(Some(known[due].deadline), earliest);
                        answered(&mut line, &mut known, due);
                    }
                }
                _ => {}
            }
            let waiting = known.iter().filter(|caller| caller.waits);
            assert_eq!(line.next_deadline(), waiting.clone().map(|caller| caller.deadline).min());
            assert_eq!((line.len(), line.is_empty()), (waiting.clone().count(), waiting.count() == 0));
        }
    }
}

#[test]
fn r04_a_caller_in_line_is_one_cache_line() {
    assert_eq!(size_of::<Option<Node<std::task::Waker>>>(), 64);
}

#[tokio::test(start_paused = true)]
async fn r04_cancelled_waiters_leave_no_memory_behind() {
    let now = Instant::now();
    let mut line: Waiters<u32, ()> = Waiters::new(0);
    line.push_back(0, now + Duration::from_secs(9), now);
    for n in 1..10_000 {
        // Every other one comes with an earlier deadline than the first.
        let key = line.push_back(n, now + Duration::from_secs(10 - 2 * u64::from(n % 2)), now);
        line.leave(key);
    }
    assert!(line.early.len() <= 2 + STALE_MAX + 1, "{} stale deadlines", line.early.len());
    assert_eq!((line.next_deadline(), line.nodes.len()), (Some(now + Duration::from_secs(9)), 1));
}

#[tokio::test(start_paused = true)]
async fn r04_after_a_storm_the_memory_is_given_back() {
    let now = Instant::now();
    for callers in [64, 10_000_u32] {
        let mut line = Waiters::new(0);
        // All but the first come with an earlier deadline than one before them.
        let deadline = |n: u32| now + Duration::from_secs(u64::from(callers - n));
        let keys: Vec<_> = (0..callers).map(|n| line.push_back(n, deadline(n), now)).collect();
        for (n, key) in keys.into_iter().enumerate() {
            if n % 2 == 0 {
                line.answer(key, "served");
            }
            assert!(line.leave(key).is_some() || matches!(line.look(key), Look::Answered("served")));
        }
        assert_eq!((line.nodes.capacity(), line.answers.capacity(), line.early.capacity()), (0, 0, 0));
    }
}
