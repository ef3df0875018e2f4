//! Names that hang: a thread of the resolver cannot be stopped, but it is their partition's.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::mpsc;

use tokio::net::TcpListener;

use super::*;
use crate::dial::resolve::{LOOKUPS_MAX, Resolver};

const PARTITIONS: usize = 2;

#[tokio::test]
async fn r01_names_that_hang_in_one_partition_keep_no_name_of_another_from_its_turn() {
    let (release, released) = mpsc::channel::<()>();
    let (released, asked) = (Mutex::new(released), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&asked);
    let resolver = Resolver::new(LOOKUPS_MAX, move |host| {
        if host.starts_with("hangs") {
            count.fetch_add(1, Ordering::SeqCst);
            released.lock().recv().unwrap_or_default();
        }
        Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)])
    });
    let limits = LaneLimits { partitions: PARTITIONS, dial_timeout: PATIENCE, ..LaneLimits::default() };
    let lane = Lane::builder("names").limits(limits).resolver(resolver).build().expect("lane");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("port");
    let port = listener.local_addr().expect("address").port();
    let at =
        |name: &str, n: usize| lane.origin(&Origin::parse(&format!("http://{name}-{n}.test:{port}")).expect("origin"));
    let full = Arc::clone(at("hangs", 0).partition());
    let within = |sfu: &crate::OriginHandle| Arc::ptr_eq(sfu.partition(), &full);
    let mut hanging = JoinSet::new();
    for sfu in (0..4 * LOOKUPS_MAX).map(|n| at("hangs", n)).filter(within).take(LOOKUPS_MAX) {
        hanging.spawn(async move { drop(sfu.hold(Instant::now() + PATIENCE).await) });
    }
    let places_taken = async {
        while asked.load(Ordering::SeqCst) < LOOKUPS_MAX / PARTITIONS {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, places_taken).await.expect("each place of the partition is taken");
    let lives = (0..LOOKUPS_MAX).map(|n| at("lives", n)).find(|sfu| !within(sfu)).expect("one of another partition");
    lives.hold(Instant::now() + PATIENCE).await.expect("its name is found");
    assert_eq!(asked.load(Ordering::SeqCst), LOOKUPS_MAX / PARTITIONS, "no more than their partition's part");
    drop(release);
    hanging.abort_all();
}
