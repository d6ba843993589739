//! An answer as HTTP has it: a status and a body; and the way back, for this program's own questions.

use crate::{
    REPORT_SCHEMA,
    problem::{Kind, PROBLEM_JSON, Problem},
    request::{Request, Response},
    route::encoded,
    status::Status,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use witness::{WitnessReport, WitnessRequest};

const JSON: &str = "application/json";

/// What is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    /// Of a path that has other methods: which.
    pub(crate) allow: Option<String>,
    pub(crate) body: Vec<u8>,
}

/// Something was done, or begun.
#[derive(Debug, Serialize, Deserialize)]
struct Done {
    /// What, in a sentence.
    message: String,
}

/// The VMs that a process serves.
#[derive(Debug, Serialize)]
struct Vms<'a> {
    schema: u32,
    vms: Vec<VmEntry<'a>>,
}

/// One of them.
#[derive(Debug, Serialize)]
struct VmEntry<'a> {
    vm: &'a str,
    node: &'a str,
    side: &'a str,
    role: &'a str,
    protected: bool,
    /// Where there is more.
    href: String,
}

impl Answer {
    /// JSON, of what can be written as such.
    pub(crate) fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self { status: 200, content_type: JSON, allow: None, body: ended(body) },
            Err(error) => Self::problem(&Problem::new(Kind::Stalled, format!("the answer cannot be written: {error}"))),
        }
    }

    pub(crate) fn problem(problem: &Problem) -> Self {
        // A structure of texts and numbers can always be written.
        let body = serde_json::to_vec(problem).unwrap_or_default();
        Self { status: problem.status, content_type: PROBLEM_JSON, allow: None, body: ended(body) }
    }

    /// The list of one VM.
    pub(crate) fn vms(status: &Status) -> Self {
        let entry = VmEntry {
            vm: &status.vm,
            node: &status.node,
            side: status.side.word(),
            role: &status.role,
            protected: status.protected,
            href: format!("/v1/vms/{}", encoded(&status.vm)),
        };
        Self::json(&Vms { schema: REPORT_SCHEMA, vms: vec![entry] })
    }

    /// What came back from the loop. `path`: what was asked for.
    pub(crate) fn of(response: Response, path: &str) -> Self {
        match response {
            Response::Status(status) => Self::json(&status),
            Response::Keepalive(report) => Self::json(&report),
            Response::Settings(report) => Self::json(&report),
            Response::Measured(measured) => Self::json(&measured),
            Response::Witness(report) => Self::json(&report),
            Response::Done { message } => Self::json(&Done { message }),
            Response::Refused { message, remedy } => {
                let problem = Problem::new(Kind::Refused, message).instance(path);
                Self::problem(&Problem { remedy, ..problem })
            }
            Response::Away { message, remedy } => {
                Self::problem(&Problem::new(Kind::Away, message).remedy(remedy).instance(path))
            }
        }
    }
}

/// A line's end, for whoever reads it at a terminal.
fn ended(mut body: Vec<u8>) -> Vec<u8> {
    body.push(b'\n');
    body
}

/// What an answer to `request` says.
///
/// # Errors
/// It is none.
pub(crate) fn read(request: &Request, status: u16, content_type: &str, body: &[u8]) -> Result<Response, String> {
    if content_type.starts_with(PROBLEM_JSON) {
        return parse::<Problem>(body).map(of_problem);
    }
    if status != 200 {
        return Err(format!("HTTP status {status} without a problem document"));
    }
    Ok(match request {
        Request::Status => Response::Status(parse(body)?),
        Request::Keepalive | Request::KeepaliveSet(_) => Response::Keepalive(parse(body)?),
        Request::Set(_) => Response::Settings(parse(body)?),
        Request::Measured => Response::Measured(parse(body)?),
        Request::Witness(WitnessRequest::List) => Response::Witness(parse::<Box<WitnessReport>>(body)?),
        _ => parse::<Done>(body).map(|Done { message }| Response::Done { message })?,
    })
}

/// Whether an answer says that there is no place for one more connection.
pub(crate) fn is_busy(content_type: &str, body: &[u8]) -> bool {
    content_type.starts_with(PROBLEM_JSON) && parse::<Problem>(body).is_ok_and(|problem| problem.is(Kind::Busy))
}

fn of_problem(problem: Problem) -> Response {
    match (problem.is(Kind::Away), problem.remedy) {
        (true, remedy) => Response::Away { message: problem.detail, remedy: remedy.unwrap_or_default() },
        (false, remedy) => Response::Refused { message: problem.detail, remedy },
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_read_as_the_same() {
        let done = Response::Done { message: "taking over".into() };
        let refused = Response::Refused { message: "no".into(), remedy: Some("wait".into()) };
        let plainly = Response::Refused { message: "no".into(), remedy: None };
        let away = Response::Away { message: "the arbiter is away".into(), remedy: "start it".into() };
        let cases = [(done, 200), (refused, 409), (plainly, 409), (away, 503)];
        for (response, status) in cases {
            let sent = Answer::of(response.clone(), "/v1/vms/web/takeover");
            assert_eq!(sent.status, status);
            assert_eq!(read(&Request::Takeover, status, sent.content_type, &sent.body), Ok(response));
        }
        let status = Response::Status(Box::new(Status { vm: "web".into(), ..Status::default() }));
        let sent = Answer::of(status.clone(), "/v1/vms/web");
        assert_eq!(read(&Request::Status, sent.status, sent.content_type, &sent.body), Ok(status));
        assert!(read(&Request::Status, 200, JSON, b"{").is_err() && read(&Request::Status, 500, JSON, b"{}").is_err());
    }

    #[test]
    fn a_problem_document_says_all_that_rfc_9457_names() {
        let refused = Response::Refused { message: "nothing waits".into(), remedy: Some("look at status".into()) };
        let sent = Answer::of(refused, "/v1/vms/web/solo");
        let expected = serde_json::json!({
            "type": "/v1/problems/refused", "title": "The request was refused", "status": 409, "detail": "nothing waits",
            "instance": "/v1/vms/web/solo", "exit_code": 1, "remedy": "look at status",
        });
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&sent.body).unwrap(), expected);
        assert_eq!(sent.content_type, "application/problem+json");
    }
}
