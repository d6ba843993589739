//! The release before spoke lines of JSON over the same socket. Both ways round, whoever meets it says so; and a process of
//! that release is told to give up its place: else it could not be upgraded without an outage.

use crate::{
    client::{ask, connect},
    request::{Request, Response},
    socket::{ControlError, failed},
    status::Status,
};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    time::Duration,
};

/// Bytes of an answer that are read.
const MAX_ANSWER: u64 = 1 << 20;

/// What a command of the release before is told.
pub(crate) fn refusal() -> Vec<u8> {
    let message = "this process speaks the control protocol of a newer afterimage".to_owned();
    let remedy =
        Some("upgrade the program that asks: run the command with the `afterimage` of this process".to_owned());
    // Texts can always be written.
    let mut line = serde_json::to_vec(&Response::Refused { message, remedy }).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Whether these bytes are what a process of the release before says to HTTP.
pub(crate) fn is_older(heard: &[u8]) -> bool {
    heard.starts_with(br#"{"refused":{"message":"no request"#)
}

/// Asks a process of the release before. Of its status only the role is known here.
fn ask_older(path: &Path, request: &Request, timeout: Duration) -> Result<Response, ControlError> {
    let mut stream = connect(path, timeout)?;
    stream.set_read_timeout(Some(timeout)).map_err(failed("setting a timeout", path))?;
    let mut line = serde_json::to_vec(request).map_err(|e| failed("asking", path)(e.into()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(failed("asking", path))?;
    let mut heard = Vec::new();
    let read = BufReader::new(stream).take(MAX_ANSWER).read_until(b'\n', &mut heard);
    read.map_err(failed("waiting for the answer", path))?;
    response(&heard).map_err(|why| ControlError::answer(path, &heard, why))
}

/// Asks whoever may be of the release before: it gives up its place when it is told to, or could not be upgraded in place.
pub fn ask_any(path: &Path, request: &Request, patience: Duration) -> Result<Response, ControlError> {
    match ask(path, request.clone(), patience) {
        Err(ControlError::Older { .. }) => ask_older(path, request, patience),
        asked => asked,
    }
}

fn response(line: &[u8]) -> Result<Response, String> {
    let value: Value = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    match value.get("status").map(|status| status["role"].as_str().unwrap_or_default()) {
        Some(role) => Ok(Response::Status(Box::new(Status { role: role.to_owned(), ..Status::default() }))),
        None => serde_json::from_value(value).map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_release_before_are_known() {
        let done = Response::Done { message: "leaving".into() };
        assert_eq!(response(b"{\"done\":{\"message\":\"leaving\"}}\n"), Ok(done));
        let status = response(b"{\"status\":{\"schema\":1,\"role\":\"waiting-for-arbiter\",\"beats\":7}}\n").unwrap();
        assert!(matches!(status, Response::Status(status) if status.role == "waiting-for-arbiter"));
        assert!(response(b"").is_err() && response(b"{\"QMP\":1}\n").is_err());
        assert!(is_older(b"{\"refused\":{\"message\":\"no request: expected value at line 1 column 1\""));
        assert!(!is_older(b"HTTP/1.1 200 OK") && !is_older(b"{\"QMP\":1}") && !is_older(b""));
        // Read by it as an answer to anything.
        let told: Value = serde_json::from_slice(&refusal()).unwrap();
        assert!(told["refused"]["message"].as_str().unwrap().contains("newer afterimage"), "{told}");
    }
}
