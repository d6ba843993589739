//! QEMU's command line, taken apart and put together again without a change to what is not touched.
//!
//! ```text
//! [wrapper words] qemu  -flag  --flag  -option VALUE  image
//!                                              VALUE: key=value,word,key=a,,b   or one JSON object
//! ```
//!
//! An option begins with one dash or two, and its value is the next word, whatever that begins with: there is no joined form
//! (QEMU's `lookup_opt`, softmmu/vl.c). Which options take a value is in [`options`]; of one that is not known, the next word
//! is taken for its value unless it begins with a dash.

mod options;
mod params;

pub use params::{Params, escaped};

use options::takes_value;
use std::fmt;

/// One option with its value, or a word that is none: a disk's image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The option as it was written, as `--machine`; empty for a word that is no option.
    pub written: String,
    /// Its value, or the word.
    pub value: Option<String>,
}

impl Item {
    /// An option of our own; `name` without its dash.
    #[must_use]
    pub fn option(name: &str, value: impl Into<String>) -> Self {
        Self { written: format!("-{name}"), value: Some(value.into()) }
    }

    /// The same with a value that is made of parameters.
    #[must_use]
    pub fn with_params(&self, params: &Params) -> Self {
        Self { written: self.written.clone(), value: Some(params.to_string()) }
    }

    /// The option's name without dashes, its other spellings replaced; empty for a word that is no option.
    #[must_use]
    pub fn name(&self) -> &str {
        let bare = self.written.strip_prefix("--").or(self.written.strip_prefix('-')).unwrap_or_default();
        match bare {
            "M" => "machine",
            other => other,
        }
    }

    /// The value's parameters. `None` without a value.
    #[must_use]
    pub fn params(&self) -> Option<Params> {
        self.value.as_deref().map(Params::parse)
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) if self.written.is_empty() => f.write_str(value),
            Some(value) => write!(f, "{} {value}", self.written),
            None => f.write_str(&self.written),
        }
    }
}

/// A whole command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// The program, and what stands before it: `env LD_PRELOAD=… qemu-system-x86_64`.
    pub program: Vec<String>,
    /// Its options, in order.
    pub items: Vec<Item>,
}

impl CommandLine {
    /// Takes a command line apart. Nothing of it is refused, nor lost.
    #[must_use]
    pub fn parse(argv: &[String]) -> Self {
        let mut words = argv.iter().skip(program_words(argv)).peekable();
        let mut items = Vec::new();
        while let Some(word) = words.next() {
            if !is_option(word) {
                items.push(Item { written: String::new(), value: Some(word.clone()) });
                continue;
            }
            let mut item = Item { written: word.clone(), value: None };
            let follows = match takes_value(item.name()) {
                Some(known) => known,
                None => words.peek().is_some_and(|next| !is_option(next)),
            };
            if follows {
                item.value = words.next().cloned();
            }
            items.push(item);
        }
        Self { program: argv.iter().take(program_words(argv)).cloned().collect(), items }
    }

    /// All options of that name.
    pub fn named(&self, name: &str) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(move |item| item.name() == name)
    }

    /// The words again.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let options = self.items.iter().flat_map(|item| {
            let written = (!item.written.is_empty()).then(|| item.written.clone());
            written.into_iter().chain(item.value.clone())
        });
        self.program.iter().cloned().chain(options).collect()
    }

    /// The words again, quoted for a POSIX shell.
    #[must_use]
    pub fn shell(&self) -> String {
        self.words().iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
    }
}

/// How many words belong to the program: all up to the first that looks like a QEMU; else one.
fn program_words(argv: &[String]) -> usize {
    let is_qemu = |word: &String| {
        let name = word.rsplit('/').next().unwrap_or_default();
        name.starts_with("qemu") || name == "kvm"
    };
    argv.iter().position(is_qemu).map_or(1, |at| at + 1)
}

fn is_option(word: &str) -> bool {
    word.len() > 1 && word.starts_with('-')
}

/// A word for a POSIX shell.
#[must_use]
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+.,:/@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> CommandLine {
        CommandLine::parse(&text.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn every_line_comes_back_as_it_was() {
        for text in [
            "qemu-system-x86_64",
            "env LD_PRELOAD=/x.so qemu-system-x86_64 -M pc --machine q35,usb=off -S disk.img -m 2G",
            "/usr/bin/kvm -no-such-option value -no-such-flag -S",
            "my-hypervisor -name -S -m",
            "qemu-kvm -append -S -k de - -",
        ] {
            let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
            assert_eq!(CommandLine::parse(&words).words(), words);
        }
    }

    #[test]
    fn values_are_told_from_options() {
        let parsed =
            line("env A=b qemu-system-x86_64 --machine pc -M q35 -name -S -S -new-thing x -new-flag -daemonize a.img");
        assert_eq!(parsed.program, ["env", "A=b", "qemu-system-x86_64"]);
        assert_eq!(parsed.named("machine").count(), 2);
        assert_eq!(parsed.named("name").next().unwrap().value.as_deref(), Some("-S"));
        assert_eq!(parsed.named("S").count(), 1);
        assert_eq!(parsed.named("new-thing").next().unwrap().value.as_deref(), Some("x"));
        assert_eq!(parsed.named("new-flag").next().unwrap().value, None);
        assert_eq!(parsed.named("").next().unwrap().to_string(), "a.img");
        assert_eq!(parsed.named("machine").next().unwrap().to_string(), "--machine pc");
    }

    #[test]
    fn a_shell_reads_the_same_words() {
        let words = ["qemu-system-x86_64", "-append", "it's $HOME `x` \"y\"", "", "-device", r#"{"driver":"e1000"}"#];
        let words = words.map(str::to_owned);
        let text = words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        let out = std::process::Command::new("sh").args(["-c", &format!("printf '%s\\n' {text}")]).output().unwrap();
        assert_eq!(String::from_utf8(out.stdout).unwrap(), words.map(|word| word + "\n").concat());
    }
}
