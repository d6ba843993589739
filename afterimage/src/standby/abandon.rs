//! A takeover that is not over yet, of a VM that is another copy's since: an operator gave it to another node, when this one could
//! not run it. What was started here ends, and this process with it.

use super::{node::Node, task::Task};
use crate::{
    events::emit,
    exit::{self, Code, ExitError},
};
use mc_core::gate::OutputGate;
use serde_json::json;
use std::time::Duration;

/// Between two looks at an attempt that is under way.
const STEP: Duration = Duration::from_millis(10);

impl Node {
    /// Returns why this process ends. The image is kept, unless a guest may have written to it.
    pub(super) fn abandon(&mut self) -> anyhow::Error {
        // Whatever runs here is not seen.
        self.gate.shut();
        let pending = self.pending.take();
        let begun = pending.as_ref().is_some_and(|pending| pending.may_have_run());
        let kept = match begun {
            true => "This copy was ended".to_owned(),
            false => self.keep_image().unwrap_or_else(|error| format!("No image is kept: {}", exit::words(&error))),
        };
        if let Some(attempt) = pending.and_then(|pending| pending.attempt) {
            end(&attempt);
        }
        self.vm = None;
        let vm = self.config.vm;
        emit("abandoned", json!({ "vm": vm, "kept": kept }));
        let what =
            format!("{vm} was given to another node while this one could not run it: the takeover is given up. {kept}");
        ExitError::new(Code::Fenced, what).into()
    }
}

/// A QEMU that is being started or fed is ended, though it may have come to run.
fn end(attempt: &Task<super::takeover::Attempt>) {
    loop {
        match attempt.take() {
            None => std::thread::sleep(STEP),
            Some(Ok(mut ended)) => return ended.lent.kill(),
            Some(Err(error)) => return tracing::error!(%error, "the QEMU of the takeover"),
        }
    }
}
