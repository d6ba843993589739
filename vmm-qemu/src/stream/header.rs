//! The start of a stream: magic, machine, and the configuration's subsections.

use super::{
    CAPABILITIES, IGNORE_SHARED, MAGIC, MAX_MACHINE, Problem, VERSION,
    cursor::{Cursor, Halt, text},
    element,
    parser::{Kind, Parser, State, expect_element, expect_version},
};

impl Parser {
    pub(super) fn header(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Halt> {
        let magic = cursor.u32()?;
        if magic != MAGIC {
            return Err(Problem::Magic(magic).into());
        }
        expect_version("the stream", cursor.u32()?, VERSION)?;
        expect_element(cursor.u8()?, element::CONFIGURATION, "0x07 (configuration)")?;
        let len = cursor.u32()?;
        if len == 0 || len as usize > MAX_MACHINE {
            return Err(Problem::machine_length(len.into()).into());
        }
        let name = cursor.take(len as usize)?;
        if !name.iter().all(u8::is_ascii_graphic) {
            return Err(Problem::Machine.into());
        }
        #[cfg(feature = "testing")]
        self.machine.extend_from_slice(name);
        self.state = State::Subsections;
        Ok(())
    }

    pub(super) fn subsection(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Halt> {
        if *cursor.rest().first().ok_or(Halt::Need(1))? != element::SUBSECTION {
            self.state = State::Element;
            return Ok(());
        }
        cursor.u8()?;
        let name = cursor.idstr()?;
        expect_version("a configuration subsection", cursor.u32()?, 1)?;
        match name {
            CAPABILITIES => self.capabilities(cursor),
            b"configuration/target-page-bits" => match cursor.u32()? {
                12 => Ok(()),
                bits => Err(Problem::PageBits(bits).into()),
            },
            b"configuration/uuid" => cursor.take(16).map(drop),
            _ => Err(Problem::Subsection(text(name)).into()),
        }
    }

    /// Those that both ends must agree on. With x-ignore-shared the shared memory is missing from the stream.
    fn capabilities(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Halt> {
        let mut ignore_shared = false;
        for _ in 0..cursor.u32()? {
            let name = cursor.idstr()?;
            if name != IGNORE_SHARED || self.kind == Kind::Colo || ignore_shared {
                return Err(Problem::Capability(text(name)).into());
            }
            ignore_shared = true;
        }
        self.ignore_shared = ignore_shared;
        Ok(())
    }
}
