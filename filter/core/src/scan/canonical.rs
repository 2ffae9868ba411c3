//! The canonical form of a prompt: JSON events become the byte stream that is chunked and hashed.
//!
//! Two bodies that mean the same prompt give the same stream, and appending an element (the next
//! turn of a conversation, more prompt text) only appends bytes. The form is part of the hash
//! format: all routers must agree on it.
//!
//! - A string is its text: escapes resolved, UTF-8, a lone surrogate as U+FFFD.
//! - Structure is told by marks, bytes that UTF-8 text cannot hold:
//!   `ELEMENT` (ff) stands before every array element but the first; an object is `OBJECT` (f8),
//!   per member `MEMBER` (fe) key `VALUE` (fd) value, `OBJECT_END` (fc); an array is `ARRAY` (fb),
//!   elements, `ARRAY_END` (fa); a number, `true`, `false`, `null` is `LITERAL` (f9) and its text.
//!   Whitespace between tokens has no trace.
//! - An array that is the whole section, or a direct element of such an array, has no `ARRAY` and
//!   `ARRAY_END`. So `"a"`, `["a"]` are the same stream, and `[1,2]`, `[[1,2]]` are.
//! - Token ids, which are whole numbers below 2^32 directly in such an array, are four bytes each,
//!   little-endian, without any mark: 128 ids are a chunk.
//! - In objects, a member `cache_control` is left out: clients move it at every turn.
//! - In the main section, a string member `content` is written as the array of one text part that
//!   means the same, `[{"type":"text","text":...}]`: clients change between the two forms.
//! - Media: a string member with a name of [`is_media`] that begins with `data:` or is longer than
//!   256 bytes is `MEDIA` (f7), the hash of its first 4096 bytes and its length, 8 bytes each,
//!   little-endian.
//! - A section whose value is a literal or a number is absent. The last value of a section counts.
//!
//! Different prompts give different streams, but for bodies no engine accepts (text that is not
//! UTF-8, arrays of mixed types).

use super::api::{Api, Section};
use super::events::{Container, Literal, Place, Position};
use super::prompt::Prompt;
use super::scratch::Scratch;
use crate::hash::hash;

const ELEMENT: u8 = 0xff;
const MEMBER: u8 = 0xfe;
const VALUE: u8 = 0xfd;
const OBJECT_END: u8 = 0xfc;
const ARRAY: u8 = 0xfb;
const ARRAY_END: u8 = 0xfa;
const LITERAL: u8 = 0xf9;
const OBJECT: u8 = 0xf8;
const MEDIA: u8 = 0xf7;

/// What stands before and after the text of a string member `content`.
const PART_START: &[u8] = b"\xfb\xf8\xfetype\xfdtext\xfetext\xfd";
const PART_END: &[u8] = b"\xfc\xfa";

/// Open containers around a section, around the elements of its array, and around the members of
/// those elements.
const SECTION_DEPTH: usize = 1;
const ELEMENT_DEPTH: usize = 2;
const MEMBER_DEPTH: usize = 3;

/// A longer media string is hashed instead of copied.
const MAX_PLAIN_MEDIA_BYTES: usize = 256;
/// How much of a media string is hashed.
const MEDIA_HASH_BYTES: usize = 4096;

/// What to do with the value of a member, by its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Meaning {
    #[default]
    Plain,
    Content,
    Role,
    Media,
}

/// What is being read.
#[derive(Clone, Copy, Debug, Default)]
enum Scalar {
    #[default]
    Text,
    Content,
    Role,
    Media,
    /// A number that may be a token id.
    TokenId(Place),
    /// A number that is none.
    Number,
}

/// Writes the canonical form of the sections of one body.
#[derive(Clone, Debug, Default)]
pub(super) struct Canonical {
    prompt: Prompt,
    /// The section whose value is awaited or being read.
    section: Option<Section>,
    section_is_array: bool,
    /// Open containers around the member that is being left out, or 0.
    left_out: usize,
    meaning: Meaning,
    scalar: Scalar,
    /// Whether the current element of the main section has the role `user`.
    is_user: bool,
    media: Vec<u8>,
    media_bytes: usize,
    /// Whether the main section has pictures, recordings or files.
    has_media: bool,
    /// Whether it is one text.
    main_is_text: bool,
}

impl Canonical {
    pub(super) fn prompt(&self) -> &Prompt {
        &self.prompt
    }

    /// Whether the prompt has anything but text: a token that stands for a picture does not tell which.
    pub(super) fn has_media(&self) -> bool {
        self.has_media
    }

    /// Whether the main section is one text, and no list.
    pub(super) fn main_is_text(&self) -> bool {
        self.main_is_text
    }

    /// Whether keys and values are being written now.
    #[inline]
    pub(super) fn is_writing(&self) -> bool {
        self.section.is_some() && self.left_out == 0
    }

    /// Whether the string being read is written as it comes, by [`Self::absorb`].
    #[inline]
    pub(super) fn is_plain_text(&self) -> bool {
        self.is_writing() && matches!(self.scalar, Scalar::Text | Scalar::Content)
    }

    /// A top-level key.
    pub(super) fn top_key(&mut self, api: Api, key: Option<&[u8]>) {
        self.section = key.and_then(|key| api.section(key));
    }

    /// A key inside a section that is being written.
    pub(super) fn key(&mut self, depth: usize, key: &[u8]) {
        if key == b"cache_control" {
            self.left_out = depth;
            return;
        }
        let in_main = self.section == Some(Section::Main);
        self.meaning = match key {
            b"content" if in_main => Meaning::Content,
            b"role" if in_main && depth == MEMBER_DEPTH && self.section_is_array => Meaning::Role,
            key if is_media(key) => Meaning::Media,
            _ => Meaning::Plain,
        };
        self.prompt.write_between(MEMBER, key, VALUE);
    }

    /// A key too long to have a meaning starts.
    pub(super) fn start_long_key(&mut self) {
        self.meaning = Meaning::Plain;
        self.prompt.push(MEMBER);
    }

    /// A piece of a key too long to have a meaning.
    pub(super) fn long_key(&mut self, piece: &[u8]) {
        self.prompt.write(piece);
    }

    /// A key too long to have a meaning ends.
    pub(super) fn end_long_key(&mut self) {
        self.prompt.push(VALUE);
    }

    pub(super) fn open(&mut self, place: Place, container: Container) {
        if !self.is_writing() {
            return;
        }
        self.start_value(place, container == Container::Array);
        match container {
            Container::Object => self.prompt.push(OBJECT),
            Container::Array if self.is_bare(place.depth) => {}
            Container::Array => self.prompt.push(ARRAY),
        }
        if place.depth == ELEMENT_DEPTH {
            self.is_user = false;
        }
    }

    /// A container closed and `depth` are still open.
    pub(super) fn close(&mut self, depth: usize, container: Container) {
        if self.is_writing() && depth >= SECTION_DEPTH {
            match container {
                Container::Object => self.prompt.push(OBJECT_END),
                Container::Array if self.is_bare(depth) => {}
                Container::Array => self.prompt.push(ARRAY_END),
            }
            if depth == ELEMENT_DEPTH && self.is_user {
                self.is_user = false;
                self.prompt.end_opening();
            }
        }
        self.end_value(depth);
    }

    pub(super) fn literal(&mut self, place: Place, literal: Literal) {
        if self.is_writing() && place.depth != SECTION_DEPTH {
            self.separate(place);
            self.prompt.push(LITERAL);
            self.prompt.write(literal.text());
        }
        self.end_value(place.depth);
    }

    pub(super) fn start_string(&mut self, place: Place, scratch: &mut Scratch) {
        if !self.is_writing() {
            return;
        }
        self.start_value(place, false);
        let is_member = place.position == Position::Member && place.depth != SECTION_DEPTH;
        self.scalar = match self.meaning {
            Meaning::Content if is_member => {
                self.prompt.write(PART_START);
                Scalar::Content
            }
            Meaning::Role if is_member => {
                scratch.clear();
                Scalar::Role
            }
            Meaning::Media if is_member => {
                self.has_media |= self.section == Some(Section::Main);
                self.media.clear();
                self.media_bytes = 0;
                Scalar::Media
            }
            _ => Scalar::Text,
        };
    }

    pub(super) fn start_number(&mut self, place: Place, scratch: &mut Scratch) {
        if !self.is_writing() {
            return;
        }
        if place.depth == SECTION_DEPTH {
            self.section = None;
        } else if self.may_be_token_id(place) {
            scratch.clear();
            self.scalar = Scalar::TokenId(place);
        } else {
            self.start_plain_number(place);
        }
    }

    /// Takes string text from the start of `input`, short escapes included, and returns how many
    /// bytes it took. Only for plain text.
    #[inline]
    pub(super) fn absorb(&mut self, input: &[u8]) -> usize {
        self.prompt.absorb(input)
    }

    /// A piece of a string or number. `scratch` is the same from its start to its end.
    pub(super) fn piece(&mut self, piece: &[u8], scratch: &mut Scratch) {
        if !self.is_writing() {
            return;
        }
        match self.scalar {
            Scalar::Text | Scalar::Content | Scalar::Number => self.prompt.write(piece),
            Scalar::Role => {
                scratch.push(piece);
                self.prompt.write(piece);
            }
            Scalar::Media => {
                let free = MEDIA_HASH_BYTES.saturating_sub(self.media.len());
                self.media
                    .extend_from_slice(piece.get(..free).unwrap_or(piece));
                self.media_bytes += piece.len();
            }
            Scalar::TokenId(place) => {
                if !scratch.push(piece) {
                    self.start_plain_number(place);
                    self.prompt.write(scratch.held());
                    self.prompt.write(piece);
                }
            }
        }
    }

    pub(super) fn end_string(&mut self, depth: usize, scratch: &Scratch) {
        if self.is_writing() {
            match self.scalar {
                Scalar::Content => self.prompt.write(PART_END),
                Scalar::Role => self.is_user = scratch.whole() == Some(b"user"),
                Scalar::Media => self.end_media(),
                _ => {}
            }
        }
        self.end_value(depth);
    }

    pub(super) fn end_number(&mut self, depth: usize, scratch: &Scratch) {
        if self.is_writing()
            && let Scalar::TokenId(place) = self.scalar
        {
            match token_id(scratch.held()) {
                Some(id) => self.prompt.write_id(id),
                None => {
                    self.start_plain_number(place);
                    self.prompt.write(scratch.held());
                }
            }
        }
        self.end_value(depth);
    }

    /// A whole number without sign, fraction and exponent.
    #[inline]
    pub(super) fn integer(&mut self, place: Place, digits: &[u8], value: u32) {
        if self.is_writing() && place.depth != SECTION_DEPTH {
            if self.may_be_token_id(place) {
                self.prompt.write_id(value);
            } else {
                self.start_plain_number(place);
                self.prompt.write(digits);
            }
        }
        self.end_value(place.depth);
    }

    /// What stands before a string or container.
    fn start_value(&mut self, place: Place, is_array: bool) {
        if place.depth != SECTION_DEPTH {
            self.separate(place);
        } else if let Some(section) = self.section {
            self.section_is_array = is_array;
            self.is_user = false;
            if section == Section::Main {
                self.main_is_text = !is_array;
            }
            self.prompt.begin(section);
        }
    }

    fn start_plain_number(&mut self, place: Place) {
        self.scalar = Scalar::Number;
        self.separate(place);
        self.prompt.push(LITERAL);
    }

    /// Whether a number stands directly in an array without marks.
    fn may_be_token_id(&self, place: Place) -> bool {
        let in_array = matches!(place.position, Position::First | Position::Later);
        in_array && self.is_bare(place.depth.saturating_sub(1))
    }

    fn separate(&mut self, place: Place) {
        if place.position == Position::Later {
            self.prompt.push(ELEMENT);
        }
    }

    /// Whether an array inside `depth` containers has no marks of its own.
    fn is_bare(&self, depth: usize) -> bool {
        depth == SECTION_DEPTH || depth == ELEMENT_DEPTH && self.section_is_array
    }

    fn end_media(&mut self) {
        if self.media_bytes > MAX_PLAIN_MEDIA_BYTES || self.media.starts_with(b"data:") {
            self.prompt.push(MEDIA);
            self.prompt.write(&hash(&self.media).to_le_bytes());
            self.prompt.write(&(self.media_bytes as u64).to_le_bytes());
        } else {
            self.prompt.write(&self.media);
        }
    }

    /// A value inside `depth` containers ended.
    #[inline]
    fn end_value(&mut self, depth: usize) {
        if self.left_out == depth {
            self.left_out = 0;
        } else if depth == SECTION_DEPTH && self.section.take().is_some() {
            self.prompt.end();
        }
    }
}

/// Names of members whose string may be a picture, a recording or a file.
fn is_media(key: &[u8]) -> bool {
    // Nearly all other names fail at their first letter.
    let first = key.first().copied().unwrap_or_default();
    matches!(first, b'a' | b'b' | b'd' | b'f' | b'i' | b'u' | b'v')
        && matches!(
            key,
            b"url"
                | b"data"
                | b"image"
                | b"image_url"
                | b"image_data"
                | b"b64_json"
                | b"audio"
                | b"audio_url"
                | b"audio_data"
                | b"video"
                | b"video_url"
                | b"video_data"
                | b"file_data"
        )
}

/// The token id that a number's text is.
fn token_id(text: &[u8]) -> Option<u32> {
    text.iter().try_fold(0_u32, |id, byte| {
        let digit = byte.checked_sub(b'0').filter(|&digit| digit <= 9)?;
        id.checked_mul(10)?.checked_add(u32::from(digit))
    })
}
