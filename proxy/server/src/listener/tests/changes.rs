//! Changes of many listeners, and workers that do not answer.

use super::*;
use crate::listener::manager::Manager;
use crate::worker::{Command, Peer, Shared};
use sixfold_core::model::Listeners;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// A manager of workers that nobody runs, with what each is told; it may be told so much beforehand.
fn manager(workers: usize, room: usize) -> (Manager, Vec<mpsc::Receiver<Command>>) {
    let clusters = Model::default().clusters().clone();
    let options = Options {
        concurrency: workers,
        drain_strategy: DrainStrategy::Immediate,
        drain_time: Duration::from_secs(60),
        ..Options::default()
    };
    let shared = Arc::new(Shared::new(clusters, Registry::new(), Arc::new(Nowhere), options));
    let (mut peers, mut queues) = (Vec::new(), Vec::new());
    for _ in 0..workers {
        let (commands, queue) = mpsc::channel(room);
        peers.push(Peer { commands, connections: Arc::default() });
        queues.push(queue);
    }
    assert!(shared.peers.set(peers).is_ok());
    (Manager::new(shared), queues)
}

/// Does nothing of what it is told, and says it has.
async fn say_yes(mut queue: mpsc::Receiver<Command>) {
    while let Some(command) = queue.recv().await {
        match command {
            Command::Listen { live, .. } => drop(live.send(Ok(()))),
            Command::Close { closed, .. } => drop(closed.send(())),
            Command::Settle(settled) => drop(settled.send(())),
            Command::Adopt(_) | Command::Stop => {}
        }
    }
}

fn of(name: &str) -> Listener {
    listener(&Registry::new(), name, says("x"))
}

/// One without a socket, which connections are handed over to.
fn target(name: &str, port: u16) -> Arc<Listener> {
    let addresses = vec![BindAddress::Ip((Ipv4Addr::LOCALHOST, port).into())];
    Arc::new(Listener { bind: false, addresses, shape: u64::from(port), ..of(name) })
}

// Each listener of a change had the tables of all made anew.
#[tokio::test]
async fn a_change_of_many_listeners_is_shown_once() {
    let (mut manager, queues) = manager(2, 64);
    queues.into_iter().for_each(|queue| drop(tokio::spawn(say_yes(queue))));
    let shared = manager.shared().clone();
    let found = |port: u16| shared.listeners.load().find((Ipv4Addr::LOCALHOST, port).into()).cloned();
    let shown = || shared.addresses.load().len();
    for port in 1..4 {
        manager.upsert(target(&format!("t{port}"), port)).await.unwrap();
        assert!(found(1).is_none() && shown() == 0, "{port} is shown by itself");
    }
    // Its clients may be meant for the others.
    manager.upsert(Arc::new(of("a"))).await.unwrap();
    assert!((1..4).all(|port| found(port).is_some()) && shown() == 3);
    manager.upsert(Arc::new(of("b"))).await.unwrap();
    assert_eq!(shown(), 3);
    manager.finish().await;
    assert_eq!(shown(), 5);
    // What is replaced drains once its successor is found in its place.
    let before = found(2).unwrap();
    manager.upsert(target("t2", 7)).await.unwrap();
    assert!(!before.drain.is_draining() && found(7).is_none());
    manager.finish().await;
    assert!(before.drain.is_draining() && found(7).is_some() && found(2).is_none());
}

// Control waited for good, and with it all changes, drains and the end. Each worker is waited for once in a change, however
// many listeners it has.
#[tokio::test(start_paused = true)]
async fn a_worker_that_is_held_up_holds_up_nobody_else() {
    let (mut manager, mut queues) = manager(2, 64);
    let begin = Instant::now();
    let names: Vec<Arc<str>> = (0..20).map(|n| format!("l{n}").into()).collect();
    for name in &names {
        manager.upsert(Arc::new(of(name))).await.unwrap();
    }
    manager.finish().await;
    assert_eq!(manager.shared().addresses.load().len(), 20);
    assert!(begin.elapsed() < Duration::from_millis(2500), "{:?}", begin.elapsed());
    manager.remove(&names).await;
    manager.settled().await;
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    // It hears of all, in order, when it goes on.
    let mut told = Vec::new();
    while let Ok(command) = queues[0].try_recv() {
        told.push(match command {
            Command::Listen { id, .. } => (1, id),
            Command::Close { id, .. } => (2, id),
            _ => (3, 0),
        });
    }
    let expected: Vec<_> = (1..3).flat_map(|kind| (0..20).map(move |id| (kind, id))).collect();
    assert_eq!(told[..40], expected);
    assert_eq!(told[40..], [(3, 0)]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_without_room_for_commands_gets_no_listener_and_lets_go_of_those_it_has() {
    let (mut manager, mut queues) = manager(1, 1);
    manager.upsert(Arc::new(of("a"))).await.unwrap();
    assert!(manager.upsert(Arc::new(of("b"))).await.unwrap_err().contains("timed out"));
    manager.finish().await;
    manager.remove(&["a".into()]).await;
    let mut closed = Vec::new();
    while let Ok(Some(command)) = tokio::time::timeout(Duration::from_secs(1), queues[0].recv()).await {
        match command {
            Command::Listen { id, .. } => assert_eq!((id, &closed), (0, &Vec::new())),
            Command::Close { id, .. } => closed.push(id),
            _ => panic!("nothing else was said"),
        }
    }
    closed.sort_unstable();
    assert_eq!(closed, [0, 1]);
}
