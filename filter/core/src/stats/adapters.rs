//! The LoRA adapters in use, which vLLM tells in labels.
//!
//! Each combination of adapters is a series of its own and stays on the page for good; the value is
//! the time at which it was last true, so the greatest value is the present. Series are compared in
//! place; only the last one standing is taken apart.

use super::series::{LabelText, Series, digits, unescape};

/// Most adapters that are kept of a page.
pub const MAX_ADAPTERS: usize = 64;
/// Longest name of an adapter, in the escaped form of the page; longer ones are left out.
pub const MAX_ADAPTER_NAME_BYTES: usize = 256;

/// A LoRA adapter with requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adapter {
    /// The name under which requests ask for it.
    pub name: String,
    /// Whether requests for it are being computed.
    pub is_running: bool,
    /// Whether requests for it are waiting.
    pub is_waiting: bool,
}

/// The newest series so far.
#[derive(Debug, Default)]
pub(super) struct NewestAdapters<'a> {
    newest: Option<Series<'a>>,
}

impl<'a> NewestAdapters<'a> {
    /// Keeps the series if it is as new as any before.
    pub(super) fn offer(&mut self, series: &Series<'a>) {
        if self
            .newest
            .is_none_or(|newest| newest.value <= series.value)
        {
            self.newest = Some(*series);
        }
    }

    /// The adapters, running ones first, and how many may be in use.
    pub(super) fn into_list(self) -> (Vec<Adapter>, Option<u32>) {
        let Some(Series { labels, .. }) = self.newest else {
            return (Vec::new(), None);
        };
        let mut list = Vec::new();
        for (label, is_running) in [
            (LabelText::RunningAdapters, true),
            (LabelText::WaitingAdapters, false),
        ] {
            for name in labels.get(label).split(|&byte| byte == b',') {
                mark(&mut list, name.trim_ascii(), is_running);
            }
        }
        let max = digits(labels.get(LabelText::MaxAdapters));
        (list, max.and_then(|max| u32::try_from(max).ok()))
    }
}

fn mark(list: &mut Vec<Adapter>, name: &[u8], is_running: bool) {
    if name.is_empty() || name.len() > MAX_ADAPTER_NAME_BYTES {
        return;
    }
    let Some(name) = unescape(name) else { return };
    let at = match list.iter().position(|adapter| adapter.name == name) {
        Some(at) => at,
        None if list.len() < MAX_ADAPTERS => {
            list.push(Adapter {
                name,
                ..Adapter::default()
            });
            list.len() - 1
        }
        None => return,
    };
    if let Some(adapter) = list.get_mut(at) {
        adapter.is_running |= is_running;
        adapter.is_waiting |= !is_running;
    }
}
