//! Which inference API a path speaks, and which top-level keys of its body hold the prompt.

/// An inference API, known from the request path alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Api {
    /// OpenAI `/v1/chat/completions`.
    ChatCompletions,
    /// OpenAI `/v1/completions`.
    Completions,
    /// OpenAI `/v1/responses`.
    Responses,
    /// Anthropic `/v1/messages`.
    Messages,
    /// OpenAI `/v1/embeddings`.
    Embeddings,
    /// `/rerank`, `/v1/rerank`, `/v2/rerank`.
    Rerank,
    /// vLLM `/score`, `/v1/score`.
    Score,
    /// `/generate` of SGLang and vLLM.
    Generate,
    /// vLLM `/tokenize`.
    Tokenize,
}

/// Path endings; each begins at a `/`, so none is the end of a longer one.
const ENDINGS: [(&[u8], Api); 9] = [
    (b"/v1/chat/completions", Api::ChatCompletions),
    (b"/v1/completions", Api::Completions),
    (b"/v1/responses", Api::Responses),
    (b"/v1/messages", Api::Messages),
    (b"/v1/embeddings", Api::Embeddings),
    (b"/rerank", Api::Rerank),
    (b"/score", Api::Score),
    (b"/generate", Api::Generate),
    (b"/tokenize", Api::Tokenize),
];

impl Api {
    /// The API of a request path. The query string is ignored and any mount prefix is accepted:
    /// `/team-a/v1/chat/completions?x=1` is chat completions.
    #[must_use]
    pub fn from_path(path: &[u8]) -> Option<Self> {
        let path = path.split(|&byte| byte == b'?' || byte == b'#').next()?;
        ENDINGS
            .iter()
            .find(|(ending, _)| path.ends_with(ending))
            .map(|&(_, api)| api)
    }

    /// The section of the prompt that the value of a top-level key is, if it is one.
    pub(super) fn section(self, key: &[u8]) -> Option<Section> {
        let section = match (self, key) {
            (Self::ChatCompletions | Self::Messages | Self::Responses, b"tools" | b"functions")
            | (Self::Tokenize, b"tools") => Section::Tools,
            (Self::Messages, b"system") | (Self::Responses, b"instructions") => Section::System,
            (Self::ChatCompletions | Self::Messages | Self::Tokenize, b"messages")
            | (Self::Completions | Self::Tokenize | Self::Generate, b"prompt")
            | (Self::Responses | Self::Embeddings, b"input")
            | (Self::Generate, b"text" | b"input_ids" | b"token_ids")
            | (Self::Rerank, b"query")
            | (Self::Score, b"text_1") => Section::Main,
            (Self::Rerank, b"documents") | (Self::Score, b"text_2") => Section::Documents,
            _ => return None,
        };
        Some(section)
    }
}

/// The parts of a prompt, in the order in which a chat template lays them out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    /// Tool definitions.
    Tools,
    /// A system prompt outside the messages.
    System,
    /// Messages, prompt text, token ids, a query.
    Main,
    /// What a query is compared with.
    Documents,
}

impl Section {
    /// How many there are.
    pub(super) const COUNT: usize = 4;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_known_by_its_end_at_a_slash() {
        let cases: [(&str, Option<Api>); 18] = [
            ("/v1/chat/completions", Some(Api::ChatCompletions)),
            (
                "/v1/chat/completions?a=/v1/completions",
                Some(Api::ChatCompletions),
            ),
            ("/team/v1/completions", Some(Api::Completions)),
            ("/v1/responses", Some(Api::Responses)),
            ("/anthropic/v1/messages?beta=true", Some(Api::Messages)),
            ("/v1/embeddings", Some(Api::Embeddings)),
            ("/rerank", Some(Api::Rerank)),
            ("/v1/rerank", Some(Api::Rerank)),
            ("/v2/rerank", Some(Api::Rerank)),
            ("/score", Some(Api::Score)),
            ("/v1/score", Some(Api::Score)),
            ("/generate", Some(Api::Generate)),
            ("/tokenize", Some(Api::Tokenize)),
            ("/detokenize", None),
            ("/xv1/completions", None),
            ("/v1/models", None),
            ("/v1/responses/resp_1", None),
            ("", None),
        ];
        for (path, api) in cases {
            assert_eq!(Api::from_path(path.as_bytes()), api, "{path}");
        }
    }

    #[test]
    fn a_key_is_a_section_only_in_its_own_api() {
        assert_eq!(Api::Messages.section(b"system"), Some(Section::System));
        assert_eq!(Api::ChatCompletions.section(b"system"), None);
        assert_eq!(Api::Completions.section(b"messages"), None);
        assert_eq!(Api::Score.section(b"text_2"), Some(Section::Documents));
    }
}
