//! Commands whose results are not waited for: asked now, taken when they are there.

use super::{Message, Qmp, QmpError};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// For QEMU to make room for a command. It reads them at once, unless it hangs.
const ROOM: Duration = Duration::from_millis(100);

/// Commands that were asked, and what came of them.
#[derive(Debug, Default)]
pub(super) struct Asked(BTreeMap<u64, (String, Option<Result<Value, QmpError>>)>);

impl Asked {
    /// Keeps the result of a command that was asked; gives back any other message.
    pub(super) fn keep(&mut self, message: Message) -> Option<Message> {
        let id = match &message {
            Message::Return { id: Some(id), .. } | Message::Error { id: Some(id), .. } => *id,
            _ => return Some(message),
        };
        let Some((command, answer)) = self.0.get_mut(&id) else { return Some(message) };
        *answer = match message {
            Message::Return { value, .. } => Some(Ok(value)),
            Message::Error { class, desc, .. } => {
                Some(Err(QmpError::Command { command: command.clone(), class, desc }))
            }
            _ => None,
        };
        None
    }
}

impl Qmp {
    /// Sends a command (`arguments`: an object, or null). Its result is taken with [`Qmp::answer`], by the number returned.
    ///
    /// # Errors
    /// QEMU is gone, or reads nothing.
    pub fn ask(&mut self, name: &str, arguments: Value) -> Result<u64, QmpError> {
        let id = self.send(name, arguments, Instant::now() + ROOM)?;
        self.asked.0.insert(id, (name.to_owned(), None));
        Ok(id)
    }

    /// Whether the result is there. Does not wait.
    pub fn has_answered(&mut self, id: u64) -> Result<bool, QmpError> {
        self.poll_events()?;
        Ok(self.asked.0.get(&id).is_some_and(|(_, answer)| answer.is_some()))
    }

    /// Takes the result, if it is there: QEMU's error is in it. Does not wait.
    pub fn answer(&mut self, id: u64) -> Result<Option<Result<Value, QmpError>>, QmpError> {
        if !self.has_answered(id)? {
            return Ok(None);
        }
        Ok(self.asked.0.remove(&id).and_then(|(_, answer)| answer))
    }

    /// Its result is not wanted any more.
    pub fn forget(&mut self, id: u64) {
        self.asked.0.remove(&id);
    }
}
