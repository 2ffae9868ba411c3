//! Where the status page is, if it is anywhere.

use super::reader::{Reader, text};
use crate::json::Value;

/// The filter chain that the shipped configuration calls so.
const FILTER_CHAIN: &str = "warmpath_status";
const PATH: &str = "/warmpath/";
const RECENT: u64 = 50;

/// The status page, which is served only when this is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusOptions {
    /// Name of the filter chain whose requests get the page; those of all others never do.
    pub filter_chain: String,
    /// Path of the page; begins and ends with a slash.
    pub path: String,
    /// How many decisions each worker remembers.
    pub recent: usize,
}

pub(super) fn status(reader: &mut Reader, path: &str, value: &Value) -> Option<StatusOptions> {
    let mut fields = reader.object(path, value)?;
    let filter_chain = fields
        .optional(reader, "filter_chain", text)
        .unwrap_or_else(|| FILTER_CHAIN.to_owned());
    let at = fields
        .optional(reader, "path", page_path)
        .unwrap_or_else(|| PATH.to_owned());
    let recent = fields.count(reader, "recent", 0..=200, RECENT);
    fields.finish(reader);
    Some(StatusOptions {
        filter_chain,
        path: at,
        recent: recent as usize,
    })
}

fn page_path(reader: &mut Reader, path: &str, value: &Value) -> Option<String> {
    let found = text(reader, path, value)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    let is_folder = found.starts_with('/')
        && found.ends_with('/')
        && !found.as_bytes().windows(2).any(|pair| pair == b"//");
    if is_folder && found.bytes().all(plain) {
        return Some(found);
    }
    reader.error(path, value, "a path such as `/warmpath/`");
    None
}
