//! The client against servers that are honest, and servers that lie the way a badly replicated VM would.

use rig::{
    client::{self, Plan, Stop, Summary, books::Message},
    guest::Kind,
};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, UdpSocket},
    time::Duration,
};

/// Asks until the server has seen enough, and gives the summary and all lines.
fn ask(guest: Kind, address: SocketAddr, stop: &Stop) -> (Summary, Vec<Value>) {
    let repeat_after = Duration::from_millis(20);
    let plan =
        Plan { guest, address, pipeline: 3, think: Duration::ZERO, patience: Duration::from_secs(2), repeat_after };
    let mut output = Vec::new();
    let summary = client::run(&plan, stop, &mut output).unwrap();
    let lines = output.split(|b| *b == b'\n').filter(|l| !l.is_empty());
    (summary, lines.map(|l| serde_json::from_slice(l).unwrap()).collect())
}

/// A TCP service whose answer to request number i (from 1) is whatever `answer` says; it stops the client after
/// `count`. None: it closes the connection.
fn stream(count: u64, answer: impl Fn(u64) -> Option<String> + Send + 'static) -> (Summary, Vec<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let stop = Stop::default();
    let enough = stop.clone();
    std::thread::spawn(move || {
        let (mut to, _) = listener.accept().unwrap();
        for (line, number) in BufReader::new(to.try_clone().unwrap()).lines().zip(1..) {
            assert_eq!(line.unwrap(), number.to_string());
            let Some(text) = answer(number) else { return };
            to.write_all(text.as_bytes()).unwrap();
            if number >= count {
                enough.stop();
            }
        }
    });
    ask(Kind::Linux, address, &stop)
}

#[test]
fn an_honest_stream_has_nothing_wrong() {
    let (summary, lines) = stream(50, |i| Some(format!("{i} {}\n", 1000 + i)));
    assert!(summary.replies >= 50);
    assert_eq!((summary.lost, summary.duplicated, summary.corrupt), (0, 0, 0));
    assert_eq!((summary.same_connection, summary.stuck), (Some(true), false));
    assert_eq!(lines[0]["event"], "connected");
    let replies: Vec<_> = lines.iter().filter(|l| l["event"] == "reply").collect();
    assert_eq!(replies.len() as u64, summary.replies);
    assert_eq!((&replies[9]["seq"], &replies[9]["n"]), (&10.into(), &1010.into()));
    assert!(replies[9]["at_ms"].is_f64() && replies[9]["latency_us"].is_u64());
    let last = lines.last().unwrap().as_object().unwrap();
    assert_eq!(Summary::from_json(last), Some(summary));
}

#[test]
fn a_stream_that_went_back_in_time() {
    // Three requests that were answered are forgotten after the twentieth.
    let (summary, lines) = stream(40, |i| Some(format!("{i} {}\n", if i > 20 { i - 3 } else { i })));
    assert_eq!((summary.lost, summary.duplicated), (3, 0));
    let wrong: Vec<_> = lines.iter().filter(|l| l["event"] == "wrong").collect();
    assert_eq!(wrong.len(), 1);
    assert!(wrong[0]["what"].as_str().unwrap().contains("request 21 counted as 18"), "{wrong:?}");
}

#[test]
fn a_stream_of_two_machines() {
    // Another copy of the VM carried out two of the requests as well.
    let (summary, _) = stream(40, |i| Some(format!("{i} {}\n", if i > 20 { i + 2 } else { i })));
    assert_eq!((summary.lost, summary.duplicated), (0, 2));
}

#[test]
fn a_stream_that_repeats_itself() {
    let again = |i| if i == 20 { "20 20\n20 20\n".to_owned() } else { format!("{i} {i}\n") };
    let (summary, _) = stream(40, move |i| Some(again(i)));
    assert_eq!((summary.lost, summary.duplicated), (0, 1));
}

#[test]
fn a_stream_that_ends() {
    let (summary, lines) = stream(40, |i| (i < 20).then(|| format!("{i} {i}\n")));
    assert_eq!((summary.same_connection, summary.stuck), (Some(false), true));
    assert!(lines.iter().any(|l| l["event"] == "stuck"), "{lines:?}");
}

#[test]
fn a_stream_that_falls_silent() {
    let (summary, _) = stream(40, |i| Some(if i < 20 { format!("{i} {i}\n") } else { String::new() }));
    assert_eq!((summary.replies, summary.same_connection, summary.stuck), (19, Some(true), true));
}

#[test]
fn a_stream_of_rubbish() {
    let (summary, _) =
        stream(3, |i| Some(if i == 2 { "2 2 2\nhello\n2 2\n".to_owned() } else { format!("{i} {i}\n") }));
    assert_eq!((summary.corrupt, summary.lost, summary.duplicated), (2, 0, 0));
    let (summary, _) = stream(40, |_| Some("x".repeat(5000)));
    assert!(summary.stuck);
    let (summary, _) = stream(40, |_| Some("77 77\n".to_owned()));
    assert!(summary.stuck, "a reply to what was never asked");
}

/// The tiny guest's service over `state` (its count), which `meddle` may change before each datagram is looked at.
fn datagrams(count: u32, meddle: impl Fn(u32, &mut Message) -> bool + Send + 'static) -> Summary {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let stop = Stop::default();
    let enough = stop.clone();
    std::thread::spawn(move || {
        let mut state = Message { count: 7, ..Message::default() };
        for number in 0.. {
            let mut bytes = [0; 64];
            let (len, from) = socket.recv_from(&mut bytes).unwrap();
            let seq = Message::decode(&bytes[..len]).unwrap().seq;
            let heard = meddle(number, &mut state);
            if !heard {
                continue;
            }
            let status = if seq == state.count + 1 { 1 } else { 3 - u32::from(seq == state.count) };
            state.count += u32::from(status == 1);
            let reply = Message { seq, status, tick: state.tick, ..state };
            socket.send_to(&reply.encode(), from).unwrap();
            state.tick += 1;
            if number >= count {
                enough.stop();
            }
        }
    });
    ask(Kind::Tiny, address, &stop).0
}

#[test]
fn honest_datagrams_have_nothing_wrong_even_when_some_get_lost() {
    let summary = datagrams(60, |number, _| number % 10 != 0);
    assert!(summary.replies >= 50);
    assert_eq!((summary.lost, summary.duplicated, summary.corrupt), (0, 0, 0));
    assert_eq!((summary.same_connection, summary.stuck), (None, false));
}

#[test]
fn datagrams_that_lie() {
    let at_20 = |what: fn(&mut Message)| {
        datagrams(40, move |number, state| {
            if number == 20 {
                what(state);
            }
            true
        })
    };
    let forgot = at_20(|state| state.count -= 4);
    assert_eq!((forgot.lost, forgot.duplicated, forgot.corrupt), (4, 0, 0));
    // Two more than we asked for; whether one of them is our last request cannot be told.
    let twice = at_20(|state| state.count += 2);
    assert_eq!((twice.lost, twice.duplicated, twice.corrupt), (0, 1, 0));
    let clock = at_20(|state| state.tick -= 5);
    assert_eq!((clock.lost, clock.duplicated, clock.corrupt), (1, 0, 0));
    let memory = at_20(|state| state.bad += 3);
    assert_eq!((memory.lost, memory.duplicated, memory.corrupt), (0, 0, 3));
}

#[test]
fn nobody_there() {
    let summary = datagrams(40, |number, _| number < 10);
    assert!(summary.stuck);
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let plan = Plan {
        guest: Kind::Linux,
        address: unused,
        pipeline: 1,
        think: Duration::ZERO,
        patience: Duration::from_millis(100),
        repeat_after: Duration::from_millis(20),
    };
    let error = client::run(&plan, &Stop::default(), &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains(&unused.to_string()), "{error}");
}

/// A Redis of two keys, which `meddle` may change before each pair of writes. It stops the client after `count` pairs.
struct Redis {
    list: Vec<u64>,
    counter: u64,
}

fn redis(count: u64, meddle: impl Fn(u64, &mut Redis) + Send + 'static) -> (Summary, Vec<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let stop = Stop::default();
    let enough = stop.clone();
    std::thread::spawn(move || {
        let (mut to, _) = listener.accept().unwrap();
        let mut input = BufReader::new(to.try_clone().unwrap()).lines();
        let (mut state, mut pairs) = (Redis { list: Vec::new(), counter: 0 }, 0);
        // An array: its length, then for each word its length and itself.
        while let Some(Ok(head)) = input.next() {
            let len: usize = head[1..].parse().unwrap();
            let words: Vec<String> = (0..len).map(|_| input.nth(1).unwrap().unwrap()).collect();
            let answer = match words[0].as_str() {
                "RPUSH" => {
                    pairs += 1;
                    meddle(pairs, &mut state);
                    state.list.push(words[2].parse().unwrap());
                    format!(":{}\r\n", state.list.len())
                }
                "INCR" => {
                    state.counter += 1;
                    format!(":{}\r\n", state.counter)
                }
                _ => {
                    let (from, to): (usize, usize) = (words[2].parse().unwrap(), words[3].parse().unwrap());
                    let chunk: Vec<String> =
                        state.list.iter().skip(from).take(to + 1 - from).map(u64::to_string).collect();
                    let items: String = chunk.iter().map(|n| format!("${}\r\n{n}\r\n", n.len())).collect();
                    format!("*{}\r\n{items}", chunk.len())
                }
            };
            to.write_all(answer.as_bytes()).unwrap();
            if pairs >= count {
                enough.stop();
            }
        }
    });
    ask(Kind::Redis, address, &stop)
}

#[test]
fn every_write_that_an_honest_redis_acknowledged_is_found() {
    let (summary, lines) = redis(1200, |_, _| {});
    assert!(summary.replies >= 1200);
    assert_eq!(summary.writes, 2 * summary.replies);
    assert_eq!((summary.lost, summary.duplicated, summary.corrupt), (0, 0, 0));
    assert_eq!((summary.same_connection, summary.stuck), (Some(true), false));
    let read_back = lines.iter().find(|l| l["event"] == "read-back").unwrap();
    assert_eq!((&read_back["acknowledged"], &read_back["found"]), (&summary.replies.into(), &summary.replies.into()));
}

#[test]
fn a_redis_that_forgot_what_it_had_acknowledged() {
    // Three pairs of writes: of each the counter's is missing, and the list's, whose later lengths tell of it too.
    let (summary, _) = redis(40, |pair, state| {
        if pair == 20 {
            state.list.truncate(16);
            state.counter -= 3;
        }
    });
    assert!(summary.lost >= 6, "{summary:?}");
    assert_eq!(summary.duplicated, 0);
    // One that nobody would see but at the end.
    let (summary, _) = redis(40, |pair, state| {
        if pair == 20 {
            state.list[3] = 77_777;
        }
    });
    assert_eq!((summary.lost, summary.duplicated, summary.corrupt), (1, 0, 1));
}

#[test]
fn a_redis_that_did_something_twice() {
    let (summary, _) = redis(40, |pair, state| {
        if pair == 20 {
            state.counter += 1;
        }
    });
    assert_eq!((summary.lost, summary.duplicated), (0, 1));
    let (summary, _) = redis(40, |pair, state| {
        if pair == 20 {
            state.list.push(7);
        }
    });
    assert!(summary.duplicated > 0 && summary.lost == 0, "{summary:?}");
}
