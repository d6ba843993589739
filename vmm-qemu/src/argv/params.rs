//! An option's value: `key=value,word,…`, where a comma in a value is written twice, or a JSON object (QEMU's
//! util/keyval.c, util/qemu-option.c; JSON since 6.0).

use serde_json::{Map, Value};
use std::fmt;

/// The parameters in an option's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Params {
    /// Keys and values, in order; a word without `=` is a key without a value.
    Keys(Vec<(String, Option<String>)>),
    /// A JSON object.
    Json(Map<String, Value>),
}

impl Params {
    /// Reads a value. What is not a JSON object is taken for keys.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if text.starts_with('{')
            && let Ok(Value::Object(map)) = serde_json::from_str(text)
        {
            return Self::Json(map);
        }
        Self::Keys(split(text).into_iter().map(|part| key_and_value(&part)).collect())
    }

    /// The first word, if it has no key of its own: `user` of `user,id=n0`. In JSON, and where the key is written, that of
    /// `key`.
    #[must_use]
    pub fn kind(&self, key: &str) -> Option<String> {
        match self {
            Self::Keys(keys) => match keys.first() {
                Some((word, None)) => Some(word.clone()),
                _ => self.get(key),
            },
            Self::Json(_) => self.get(key),
        }
    }

    /// The last value of a key, as text; of a word without a value, `on`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<String> {
        match self {
            Self::Keys(keys) => {
                let found = keys.iter().rev().find(|(name, _)| name == key)?;
                Some(found.1.clone().unwrap_or_else(|| "on".to_owned()))
            }
            Self::Json(map) => map.get(key).map(|value| match value {
                Value::String(text) => text.clone(),
                Value::Bool(on) => if *on { "on" } else { "off" }.to_owned(),
                other => other.to_string(),
            }),
        }
    }

    /// Whether the key, or the word, is there.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Removes a key, however often it is there, and whatever is below it (`key.…`).
    pub fn remove(&mut self, key: &str) {
        let below = format!("{key}.");
        match self {
            Self::Keys(keys) => keys.retain(|(name, _)| name != key && !name.starts_with(&below)),
            Self::Json(map) => map.retain(|name, _| name != key && !name.starts_with(&below)),
        }
    }

    /// Gives a key one value, at the end. `on` and `off` are booleans.
    pub fn set(&mut self, key: &str, value: &str) {
        self.remove(key);
        match self {
            Self::Keys(keys) => keys.push((key.to_owned(), Some(value.to_owned()))),
            Self::Json(map) => {
                let value = match value {
                    "on" => Value::Bool(true),
                    "off" => Value::Bool(false),
                    text => Value::String(text.to_owned()),
                };
                map.insert(key.to_owned(), value);
            }
        }
    }
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(map) => write!(f, "{}", Value::Object(map.clone())),
            Self::Keys(keys) => {
                for (index, (key, value)) in keys.iter().enumerate() {
                    let comma = if index > 0 { "," } else { "" };
                    write!(f, "{comma}{}", escaped(key))?;
                    if let Some(value) = value {
                        write!(f, "={}", escaped(value))?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// In QEMU's options a comma is written twice.
#[must_use]
pub fn escaped(text: &str) -> String {
    text.replace(',', ",,")
}

/// The parts between single commas, with double ones made single.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let last = parts.last_mut().expect("never empty");
        if c != ',' {
            last.push(c);
        } else if chars.next_if_eq(&',').is_some() {
            last.push(',');
        } else {
            parts.push(String::new());
        }
    }
    parts
}

fn key_and_value(part: &str) -> (String, Option<String>) {
    match part.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (part.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_as_they_were() {
        for text in [
            "pc",
            "pc-i440fx-7.2,memory-backend=m0,usb=off",
            "file=a,,b=c,if=none",
            "",
            "socket,id=c,path=/x,server,nowait",
            r#"{"driver":"e1000","id":"n0","mac":"52:54:00:00:00:01"}"#,
        ] {
            assert_eq!(Params::parse(text).to_string(), text);
        }
    }

    #[test]
    fn keys_are_found_and_changed() {
        let mut params = Params::parse("user,id=n0,hostfwd=tcp::1-:2,hostfwd=tcp::3-:4,restrict=off,path=a,,b");
        assert_eq!(params.kind("type").as_deref(), Some("user"));
        assert_eq!((params.get("id").as_deref(), params.get("path").as_deref()), (Some("n0"), Some("a,b")));
        params.remove("hostfwd");
        params.set("restrict", "on");
        assert_eq!(params.to_string(), "user,id=n0,path=a,,b,restrict=on");
        let mut json = Params::parse(r#"{"type":"tap","id":"n0","vhost":true,"fd":"30"}"#);
        assert_eq!((json.kind("type").as_deref(), json.get("vhost").as_deref()), (Some("tap"), Some("on")));
        json.remove("fd");
        json.set("vnet_hdr", "off");
        assert_eq!(json.to_string(), r#"{"id":"n0","type":"tap","vhost":true,"vnet_hdr":false}"#);
        let mut dotted = Params::parse("stream,id=n0,addr.type=unix,addr.path=/x,address=1");
        dotted.remove("addr");
        assert_eq!(dotted.to_string(), "stream,id=n0,address=1");
        let written = Params::parse("type=pc,memory-backend=x");
        assert_eq!(written.kind("type").as_deref(), Some("pc"));
        assert!(Params::parse("server,wait=off").has("server") && !Params::parse("a=b").has("b"));
    }
}
