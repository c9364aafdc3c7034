//! What becomes of one key.

use toml::Value;

use crate::config::value;

/// A value in our form; `None` when it says what holds anyway, a reason when we have nothing like it.
pub(super) type Convert = fn(&Value) -> Result<Option<Value>, String>;

/// One key, or all below one.
#[derive(Debug)]
pub(super) struct Rule {
    /// The key; a `*` at its end stands for all that begin so.
    pub(super) key: &'static str,
    pub(super) outcome: Outcome,
}

#[derive(Debug)]
pub(super) enum Outcome {
    /// This key of ours, converted.
    Becomes(&'static str, Convert),
    /// One more entry of this list of ours.
    Appends(&'static str),
    /// With others this key of ours.
    Part(&'static str),
    /// Nothing is needed.
    Needless(&'static str),
    /// We have nothing like it.
    Missing(&'static str),
}

impl Rule {
    pub(super) fn matches(&self, key: &str) -> bool {
        match self.key.strip_suffix('*') {
            Some(start) => key.starts_with(start),
            None => key == self.key,
        }
    }
}

pub(super) const fn rule(key: &'static str, outcome: Outcome) -> Rule {
    Rule { key, outcome }
}

/// Whether a value is what files are full of that were written from defaults.
pub(super) fn says_nothing(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Integer(number) => *number == 0,
        Value::Boolean(yes) => !yes,
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

fn unlike(value: &Value) -> String {
    format!("{value} is no value that it can have here")
}

/// As it is, unless it is empty.
pub(super) fn same(value: &Value) -> Result<Option<Value>, String> {
    Ok((!says_nothing(value)).then(|| value.clone()))
}

/// True or false, also where false says something.
pub(super) fn switch(value: &Value) -> Result<Option<Value>, String> {
    Ok(value.is_bool().then(|| value.clone()))
}

/// The other way round.
pub(super) fn negated(value: &Value) -> Result<Option<Value>, String> {
    Ok(value.as_bool().map(|yes| Value::Boolean(!yes)))
}

/// What this runtime does by itself where the kernel has it.
pub(super) fn auto_or_off(value: &Value) -> Result<Option<Value>, String> {
    Ok(value.as_bool().map(|yes| Value::String(if yes { "auto" } else { "off" }.to_owned())))
}

/// One path of a list.
pub(super) fn listed(value: &Value) -> Result<Option<Value>, String> {
    Ok(same(value)?.map(|value| Value::Array(vec![value])))
}

/// Paths with colons between them.
pub(super) fn paths(value: &Value) -> Result<Option<Value>, String> {
    let text = value.as_str().unwrap_or_default();
    let list: Vec<Value> =
        text.split(':').filter(|path| !path.is_empty()).map(|path| Value::String(path.to_owned())).collect();
    Ok((!list.is_empty()).then_some(Value::Array(list)))
}

/// A duration in the form of Go, which ours is nearly.
pub(super) fn duration(value: &Value) -> Result<Option<Value>, String> {
    let Some(text) = value.as_str().filter(|text| !text.is_empty()) else { return Ok(None) };
    match value::duration(text) {
        Ok(time) if time.is_zero() => Err("0, for ever, is not offered: give a long time".to_owned()),
        Ok(_) => Ok(Some(value.clone())),
        Err(_) => Err(unlike(value)),
    }
}

/// A level of logrus, which both use.
pub(super) fn level(value: &Value) -> Result<Option<Value>, String> {
    let level = match value.as_str().unwrap_or_default() {
        "" => return Ok(None),
        "fatal" | "panic" => "error",
        "warning" => "warn",
        level @ ("trace" | "debug" | "info" | "warn" | "error") => level,
        _ => return Err(unlike(value)),
    };
    Ok(Some(Value::String(level.to_owned())))
}

/// Whether systemd makes the control groups.
pub(super) fn systemd(value: &Value) -> Result<Option<Value>, String> {
    Ok(value.as_bool().map(|yes| Value::String(if yes { "systemd" } else { "cgroupfs" }.to_owned())))
}

/// No devices by name where they are switched off.
pub(super) fn no_devices(value: &Value) -> Result<Option<Value>, String> {
    Ok((value.as_bool() == Some(false)).then(|| Value::Array(Vec::new())))
}

/// A size within what a message may have.
pub(super) fn message_size(value: &Value) -> Result<Option<Value>, String> {
    let Some(size) = value.as_integer().filter(|size| *size > 0) else { return Ok(None) };
    Ok(Some(Value::Integer(size.clamp(1 << 20, 1 << 30))))
}

/// A count within the bounds of ours.
pub(super) fn downloads(value: &Value) -> Result<Option<Value>, String> {
    let Some(count) = value.as_integer().filter(|count| *count > 0) else { return Ok(None) };
    Ok(Some(Value::Integer(count.min(64))))
}
