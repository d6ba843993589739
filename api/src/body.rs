//! A request's body: a JSON object of which every field is known, so that a slip does not pass for a wish that was left out.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Reads it.
///
/// # Errors
/// In words, with the name of the field that is wrong.
pub(crate) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    let value: Value = serde_json::from_slice(body).map_err(|error| format!("the body is not JSON: {error}"))?;
    let Value::Object(given) = value else { return Err("the body is not a JSON object".to_owned()) };
    // From the text: a field that is there twice is in no `Value`.
    serde_json::from_slice(body).map_err(|error| {
        given.into_iter().find_map(wrong::<T>).unwrap_or_else(|| format!("the body: {}", plain(&error.to_string())))
    })
}

/// What is wrong with this field by itself. (A body has one required field at most.)
fn wrong<T: DeserializeOwned>((field, value): (String, Value)) -> Option<String> {
    let alone = Value::Object(Map::from_iter([(field.clone(), value)]));
    let why = serde_json::from_value::<T>(alone).err()?.to_string();
    let unknown = why.starts_with(&format!("unknown field `{field}`"));
    Some(if unknown { format!("the body: {why}") } else { format!("{field}: {}", plain(&why)) })
}

/// The words of serde, without the types of a programming language.
fn plain(why: &str) -> String {
    let why = why.replace("invalid type: map,", "invalid type: an object,");
    let why = why.replace("invalid type: sequence,", "invalid type: an array,");
    let Some((said, expected)) = why.rsplit_once(", expected ") else { return why };
    let expected = match expected {
        "u8" => "a number from 0 to 255",
        "u64" => "a whole number, 0 or more",
        "path string" => "a path as a string",
        "a boolean" => "true or false",
        other => other,
    };
    format!("{said}, expected {expected}")
}
