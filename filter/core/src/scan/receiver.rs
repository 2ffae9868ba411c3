//! Hands the events of the parse to those who want them: the kept fields and the prompt.

use super::api::Api;
use super::canonical::Canonical;
use super::events::{Container, Literal, Place, Sink};
use super::fields::Fields;
use super::plan::{MAX_KEY_BYTES, ScanPlan};
use super::scratch::Scratch;
use super::search::{clean_len, text_len};

/// Where the text of the current string goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Text {
    #[default]
    Nowhere,
    /// Into the prompt and nowhere else, as it comes: the path of nearly all bytes.
    Prompt,
    /// To the fields or the prompt or both, in pieces.
    Value,
    Key,
    /// A key that is too long for any pointer but belongs to the prompt.
    LongKey,
}

/// What one scan has collected so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Collected {
    pub(super) fields: Fields,
    pub(super) canonical: Canonical,
    text: Text,
    scratch: Scratch,
}

/// The collected values and what they are collected for.
pub(super) struct Receiver<'a> {
    pub(super) api: Api,
    pub(super) plan: &'a ScanPlan,
    pub(super) collected: &'a mut Collected,
}

impl Receiver<'_> {
    /// A piece of text that is not simply prompt.
    fn piece(&mut self, piece: &[u8]) {
        let Collected {
            fields,
            canonical,
            text,
            scratch,
        } = &mut *self.collected;
        match text {
            Text::Nowhere => {}
            Text::Prompt | Text::Value => {
                if fields.is_keeping() {
                    fields.push(piece);
                }
                canonical.piece(piece, scratch);
            }
            Text::Key => {
                if !scratch.push(piece) && canonical.is_writing() {
                    canonical.start_long_key();
                    canonical.long_key(scratch.held());
                    canonical.long_key(piece);
                    *text = Text::LongKey;
                }
            }
            Text::LongKey => canonical.long_key(piece),
        }
    }
}

impl Sink for Receiver<'_> {
    fn open(&mut self, place: Place, container: Container) {
        self.collected.fields.open(self.plan, place);
        self.collected.canonical.open(place, container);
    }

    fn close(&mut self, depth: usize, container: Container) {
        self.collected.fields.close(depth);
        self.collected.canonical.close(depth, container);
    }

    #[inline]
    fn key(&mut self, depth: usize, key: &[u8]) {
        let Collected {
            fields, canonical, ..
        } = &mut *self.collected;
        let short = Some(key).filter(|key| key.len() <= MAX_KEY_BYTES);
        if fields.wants_key(depth) {
            fields.key(self.plan, short);
        }
        if depth == 1 {
            if self.plan.prompt() {
                canonical.top_key(self.api, short);
            }
        } else if canonical.is_writing() {
            match short {
                Some(key) => canonical.key(depth, key),
                None => {
                    canonical.start_long_key();
                    canonical.long_key(key);
                    canonical.end_long_key();
                }
            }
        }
    }

    fn start_key(&mut self, depth: usize) {
        let Collected {
            fields,
            canonical,
            text,
            scratch,
        } = &mut *self.collected;
        scratch.clear();
        *text = match fields.wants_key(depth) || canonical.is_writing() {
            true => Text::Key,
            false => Text::Nowhere,
        };
    }

    fn end_key(&mut self, depth: usize) {
        let Collected {
            fields,
            canonical,
            text,
            scratch,
        } = &mut *self.collected;
        if *text == Text::Nowhere {
            return;
        }
        if fields.wants_key(depth) {
            fields.key(self.plan, scratch.whole());
        }
        if depth == 1 {
            if self.plan.prompt() {
                canonical.top_key(self.api, scratch.whole());
            }
        } else if *text == Text::LongKey {
            canonical.end_long_key();
        } else if canonical.is_writing() {
            canonical.key(depth, scratch.held());
        }
    }

    fn start_string(&mut self, place: Place, at: usize) {
        let Collected {
            fields,
            canonical,
            text,
            scratch,
        } = &mut *self.collected;
        fields.start_string(self.plan, place, at);
        canonical.start_string(place, scratch);
        *text = if fields.is_keeping() {
            Text::Value
        } else if canonical.is_plain_text() {
            Text::Prompt
        } else if canonical.is_writing() {
            Text::Value
        } else {
            Text::Nowhere
        };
    }

    fn end_string(&mut self, depth: usize, end: usize) {
        let Collected {
            fields,
            canonical,
            scratch,
            ..
        } = &mut *self.collected;
        fields.end_string(self.plan, end);
        canonical.end_string(depth, scratch);
    }

    #[inline]
    fn text(&mut self, input: &[u8]) -> usize {
        match self.collected.text {
            Text::Prompt => self.collected.canonical.absorb(input),
            Text::Nowhere => text_len(input),
            Text::Value | Text::Key | Text::LongKey => {
                let clean = clean_len(input);
                self.piece(input.get(..clean).unwrap_or_default());
                clean
            }
        }
    }

    fn escaped(&mut self, char: char) {
        self.piece(char.encode_utf8(&mut [0; 4]).as_bytes());
    }

    fn start_number(&mut self, place: Place) {
        let Collected {
            fields,
            canonical,
            scratch,
            ..
        } = &mut *self.collected;
        fields.start_number(self.plan, place);
        canonical.start_number(place, scratch);
    }

    fn number(&mut self, piece: &[u8]) {
        let Collected {
            fields,
            canonical,
            scratch,
            ..
        } = &mut *self.collected;
        if fields.is_keeping() {
            fields.push(piece);
        }
        canonical.piece(piece, scratch);
    }

    #[inline]
    fn integer(&mut self, place: Place, digits: &[u8], value: u32) {
        let Collected {
            fields, canonical, ..
        } = &mut *self.collected;
        fields.start_number(self.plan, place);
        if fields.is_keeping() {
            fields.push(digits);
            fields.end_number(self.plan);
        }
        canonical.integer(place, digits, value);
    }

    fn end_number(&mut self, depth: usize) {
        self.collected.fields.end_number(self.plan);
        let Collected {
            canonical, scratch, ..
        } = &mut *self.collected;
        canonical.end_number(depth, scratch);
    }

    fn literal(&mut self, place: Place, literal: Literal) {
        self.collected.fields.literal(self.plan, place, literal);
        self.collected.canonical.literal(place, literal);
    }
}
