//! Numbers out of the kernel's files. What is not as expected is left out: newer kernels add lines.

use super::{DeviceUsage, Pressure, Stall};

/// A file that holds one number. `max` is none.
pub(super) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Calls for each line `key value`.
pub(super) fn pairs<'a>(text: &'a str, each: impl FnMut(&'a str, u64)) {
    pairs_of(text, |_| true, each);
}

/// The same for lines that begin as they should: the others are not looked at further.
pub(super) fn pairs_of<'a>(text: &'a str, counts: impl Fn(&str) -> bool, mut each: impl FnMut(&'a str, u64)) {
    for line in text.lines().filter(|line| counts(line)) {
        if let Some((key, value)) = line.split_once(' ')
            && let Ok(value) = value.trim().parse()
        {
            each(key, value);
        }
    }
}

/// A pressure file: lines `some` and `full`, each with averages and a total.
pub(super) fn pressure(text: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    let mut found = false;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let stall = match words.next() {
            Some("some") => &mut pressure.some,
            // The processor's has had this line since 5.13.
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        found = true;
        *stall = words.fold(Stall::default(), |mut stall, word| {
            match word.split_once('=') {
                Some(("avg10", value)) => stall.average_10 = value.parse().unwrap_or_default(),
                Some(("avg60", value)) => stall.average_60 = value.parse().unwrap_or_default(),
                Some(("avg300", value)) => stall.average_300 = value.parse().unwrap_or_default(),
                Some(("total", value)) => stall.total_microseconds = value.parse().unwrap_or_default(),
                _ => {}
            }
            stall
        });
    }
    found.then_some(pressure)
}

/// The entry of a device, new if it is the first of it.
pub(super) fn device<'a>(devices: &'a mut Vec<DeviceUsage>, name: &str) -> Option<&'a mut DeviceUsage> {
    let (major, minor) = name.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    let at = devices.iter().position(|device| (device.major, device.minor) == (major, minor));
    let at = at.unwrap_or_else(|| {
        devices.push(DeviceUsage { major, minor, ..Default::default() });
        devices.len() - 1
    });
    devices.get_mut(at)
}
