//! Asks all processes of a host at the same time, so that a dead or stopped one does not hide the others.
//!
//! All questions share one deadline, and each has a thread of its own. A socket that nobody listens on was left behind by a
//! process that died: `gone`. A process that is there and says nothing by the deadline `does-not-answer`.

use crate::{
    client::ask,
    request::{Request, Response},
    socket::ControlError,
    sockets::side_of,
    status::{OfSide, SCHEMA, Status},
};
use mc_core::id::Name;
use node::{
    events::Side,
    exit::{Code, ExitError},
    units::spoken,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt};
use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

/// How long whoever asks waits for an answer of a process: its thread only copies figures.
pub const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// The role of a process that died, and left its socket.
pub const GONE: &str = "gone";
/// The role of a process that is there, and says nothing.
pub const MUTE: &str = "does-not-answer";

/// Why a process gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoAnswer {
    /// [`GONE`] or [`MUTE`].
    pub role: &'static str,
    /// In words, with what to do.
    pub why: String,
}

/// A process that was asked, and what it said.
pub type Answered = (PathBuf, Result<Response, NoAnswer>);

/// Asks the processes behind these sockets the same, all of them at once.
pub fn ask_all(paths: &[PathBuf], request: &Request) -> Vec<Answered> {
    let (deadline, (say, said)) = (Instant::now() + ANSWER_PATIENCE, channel());
    for (index, path) in paths.iter().cloned().enumerate() {
        let (say, request) = (say.clone(), request.clone());
        // Without a thread for it the answer is missing, which is told below.
        let _ = thread::Builder::new().name("question".into()).spawn(move || {
            // Whoever asked may have gone on without this one.
            let _ = say.send((index, ask(&path, request, ANSWER_PATIENCE)));
        });
    }
    drop(say);
    let mut answers: Vec<Option<Result<Response, ControlError>>> = paths.iter().map(|_| None).collect();
    while let Ok((index, answer)) = said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        answers[index] = Some(answer);
    }
    let judged = |path: &PathBuf, answer| match answer {
        Some(Ok(response)) => Ok(response),
        Some(Err(error)) => Err(no_answer(path, &error)),
        None => Err(mute(path)),
    };
    paths.iter().zip(answers).map(|(path, answer)| (path.clone(), judged(path, answer))).collect()
}

/// Asks one process.
///
/// # Errors
/// It did not answer, or refused: why, and what to do.
pub fn ask_one(path: &Path, request: Request, patience: Duration) -> Result<Response, ExitError> {
    let answer = ask(path, request, patience).map_err(|error| {
        let why = no_answer(path, &error).why;
        let (what, remedy) = why.split_once("; ").unwrap_or((&why, "`afterimage status` shows what runs here"));
        ExitError::new(Code::Failed, format!("{}: {what}", path.display())).remedy(remedy)
    })?;
    match answer {
        Response::Refused { message, remedy } => {
            let refused = ExitError::new(Code::Failed, message);
            Err(remedy.into_iter().fold(refused, |error: ExitError, remedy: String| error.remedy(remedy)))
        }
        Response::Away { message, remedy } => Err(ExitError::new(Code::Prerequisite, message).remedy(remedy)),
        answer => Ok(answer),
    }
}

fn no_answer(path: &Path, error: &ControlError) -> NoAnswer {
    match error {
        ControlError::Io { source, .. } => match source.kind() {
            io::ErrorKind::ConnectionRefused => {
                let (what, remedy) = match side_of(path) {
                    Some((vm, side)) => ended(path, vm, side),
                    None => (left(path), "start it again".to_owned()),
                };
                NoAnswer { role: GONE, why: format!("{what}; {remedy}") }
            }
            io::ErrorKind::NotFound => NoAnswer { role: GONE, why: "its process has ended".to_owned() },
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => mute(path),
            _ => NoAnswer { role: MUTE, why: error.to_string() },
        },
        ControlError::Older { .. } => {
            let remedy = "upgrade it: end it, and start it again with this program";
            NoAnswer {
                role: MUTE,
                why: format!("its process speaks the control protocol of an older afterimage; {remedy}"),
            }
        }
        ControlError::Busy { .. } | ControlError::Answer { .. } => NoAnswer { role: MUTE, why: error.to_string() },
    }
}

fn left(path: &Path) -> String {
    format!("its process has ended, and left {}", path.display())
}

/// A process that has ended and left its socket: what is said of it, and what to do.
#[must_use]
pub fn ended(path: &Path, vm: Name, side: Side) -> (String, String) {
    let command = if side == Side::Primary { "protect" } else { side.as_str() };
    let remedy =
        format!("`afterimage why --vm {vm}` shows how it ended; to bring it back, start `afterimage {command}` again");
    (left(path), remedy)
}

fn mute(path: &Path) -> NoAnswer {
    let pid = listener(path).ok();
    let process = pid.map_or_else(|| "its process".to_owned(), |pid| format!("process {pid}"));
    let remedy = match pid.map(|pid| (pid, state(pid))) {
        Some((pid, Some('T' | 't'))) => format!("it is stopped: `kill -CONT {pid}` lets it go on"),
        Some((pid, _)) => format!("look at it: `ps -o pid,stat,wchan,cmd -p {pid}`"),
        None => format!("look at who has {}: `ss -xlp`", path.display()),
    };
    NoAnswer {
        role: MUTE,
        why: format!("{process} is there, and did not answer within {}; {remedy}", spoken(ANSWER_PATIENCE)),
    }
}

/// Connects, or says at once why not.
fn connect_now(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Whether somebody listens at a control socket: a process that died left its socket behind. Never waits.
#[must_use]
pub fn is_served(path: &Path) -> bool {
    match connect_now(path) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound),
    }
}

/// Who listens at a socket.
fn listener(path: &Path) -> io::Result<i32> {
    Ok(sockopt::socket_peercred(&connect_now(path)?)?.pid.as_raw_nonzero().get())
}

/// The state of a process, as proc(5) has it: the letter after the name, which may hold anything.
fn state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The status of each, in order.
pub fn statuses(paths: &[PathBuf]) -> Vec<Status> {
    let one = |(path, answer): Answered| match answer {
        Ok(Response::Status(status)) if status.schema != SCHEMA => silent(&path, MUTE, another_schema(status.schema)),
        Ok(Response::Status(status)) => *status,
        Ok(Response::Refused { message, .. }) => silent(&path, MUTE, message),
        Ok(other) => silent(&path, MUTE, format!("it answered a status request with {other:?}")),
        Err(NoAnswer { role, why }) => silent(&path, role, why),
    };
    let mut all: Vec<Status> = ask_all(paths, &Request::Status).into_iter().map(one).collect();
    let over: Vec<bool> = all.iter().map(|status| is_left_over(status, &all)).collect();
    for ((status, path), over) in all.iter_mut().zip(paths).zip(over) {
        if over {
            let why = "its process has ended; its socket is left over from before the failover, and harmless";
            status.notes = vec![format!("{why}: `rm {}`", path.display())];
        }
    }
    all
}

/// Whether it is what a process left that another one of the same VM has followed on this host: nothing is wrong with that.
pub fn is_left_over(status: &Status, all: &[Status]) -> bool {
    let follows = |other: &Status| other.vm == status.vm && other.is_told() && other.side != OfSide::Keeper;
    status.role == GONE && all.iter().any(follows)
}

fn silent(path: &Path, role: &str, why: String) -> Status {
    let (vm, side) = side_of(path).map_or_else(Default::default, |(vm, side)| (vm.to_string(), side.into()));
    Status { schema: SCHEMA, vm, side, role: role.to_owned(), notes: vec![why], ..Status::default() }
}

fn another_schema(schema: u32) -> String {
    format!(
        "its process is of another release: its status has schema {schema}, and this program reads {SCHEMA}; ask it with the \
         `afterimage` of its release, or start it again with this one"
    )
}
