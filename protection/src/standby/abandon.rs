//! A takeover that is not over yet, of a VM that is another copy's since: an operator gave it to another node, when this one could
//! not run it. What was started here ends, and this process with it.

use super::{main_loop::Node, takeover::Attempt, task::Task};
use mc_core::gate::OutputGate;
use node::{
    events::{Abandoned, Event, emit},
    exit::{self, Code, ExitError},
};
use std::time::Duration;

/// Between two looks at an attempt that is under way.
const STEP: Duration = Duration::from_millis(10);

impl Node {
    /// Returns why this process ends. The image is kept, unless a guest may have written to it.
    pub(super) fn give_takeover_up(&mut self) -> anyhow::Error {
        // Whatever runs here is not seen.
        self.gate.shut();
        let spoiled = self.pending.take().is_some_and(|pending| match &pending.attempt {
            Some(attempt) => end(attempt),
            None => pending.is_spoiled(),
        });
        let kept = match spoiled {
            true => "Its guest ran here for a moment, unseen, and was ended; the image is of no use".to_owned(),
            false => self
                .keep_image_at_the_end()
                .unwrap_or_else(|error| format!("No image is kept: {}", exit::words(&error))),
        };
        self.vm = None;
        let vm = self.config.vm;
        emit(Event::Abandoned(Abandoned { vm, kept: kept.clone() }));
        let what =
            format!("{vm} was given to another node while this one could not run it: the takeover is given up. {kept}");
        ExitError::new(Code::Fenced, what).into()
    }
}

/// A QEMU that is being started or fed is ended. Whether its guest had come to run, and may have written to the image.
fn end(attempt: &Task<Attempt>) -> bool {
    loop {
        match attempt.take() {
            None => std::thread::sleep(STEP),
            Some(Ok(mut ended)) => {
                ended.lent.kill();
                return ended.has_run();
            }
            Some(Err(error)) => {
                tracing::error!(%error, "the QEMU of the takeover");
                return true;
            }
        }
    }
}
