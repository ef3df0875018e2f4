use super::*;

#[test]
fn r10_every_class_has_its_turns_and_urgency_most_of_them() {
    let turns: Vec<Option<Class>> = (0..TURNS).map(turn).collect();
    let of = |class| turns.iter().filter(|t| **t == class).count();
    assert_eq!((of(None), of(Some(Class::New)), of(Some(Class::Stream))), (16, 3, 1));
    // A new call waits for at most ten placements, a stream for twenty, whatever the backlog.
    let doubled = [turns.clone(), turns].concat();
    for (class, most) in [(Class::New, 10), (Class::Stream, 20)] {
        let at: Vec<usize> = (0..doubled.len()).filter(|n| doubled[*n] == Some(class)).collect();
        assert!(at.windows(2).all(|pair| pair[1] - pair[0] <= most), "{class:?}: {at:?}");
    }
}
