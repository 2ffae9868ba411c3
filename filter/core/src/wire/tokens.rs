//! The tokens of a prompt: an engine's answer to `POST /tokenize`.
//!
//! vLLM takes the body of a completion or chat as it is and answers with the ids that its cache is
//! keyed by. At most [`MAX_TOKENS`] of them; more is an error, as a part would match less than there
//! is. One pass.
//!
//! ```
//! let tokens = warmpath_core::wire::tokens::parse(br#"{"count":2,"tokens":[7,9]}"#);
//! assert_eq!(tokens, Ok(vec![7, 9]));
//! ```

use super::{WireError, at_most};
use crate::json::{Source, Token, read};

/// Most tokens of a prompt. No model reads more.
pub const MAX_TOKENS: usize = 1 << 20;
/// Longest answer that can be of use: ten digits and a comma for each token, and the rest of it.
pub const MAX_BYTES: usize = 12 << 20;

/// Reads an answer.
///
/// # Errors
/// It is not JSON of that shape, or there are more tokens than we take.
pub fn parse(body: &[u8]) -> Result<Vec<u32>, WireError> {
    let tokens = read(body, |source| {
        let mut tokens = None;
        source.object(&mut |source, name| match name {
            "tokens" => {
                tokens = Some(list(source)?);
                Some(())
            }
            _ => source.skip(),
        })?;
        tokens
    })?;
    at_most("tokens", tokens.len(), MAX_TOKENS)?;
    Ok(tokens)
}

fn list(source: &mut Source) -> Option<Vec<u32>> {
    let mut tokens = Vec::new();
    source.list(&mut |source| match source.token()? {
        Token::Number(digits) => {
            tokens.push(digits.parse().ok()?);
            Some(())
        }
        _ => None,
    })?;
    Some(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vllms_answer_is_read() {
        let body =
            br#"{"count":3,"max_model_len":8192,"tokens":[1,4294967295,0],"token_strs":null}"#;
        assert_eq!(parse(body), Ok(vec![1, u32::MAX, 0]));
    }

    #[test]
    fn what_is_no_list_of_ids_is_an_error() {
        for body in [
            "",
            "{}",
            "[1]",
            r#"{"tokens":null}"#,
            r#"{"tokens":[-1]}"#,
            r#"{"tokens":[1.5]}"#,
            r#"{"tokens":[4294967296]}"#,
            r#"{"tokens":["1"]}"#,
            r#"{"error":{"message":"x"}}"#,
        ] {
            assert!(parse(body.as_bytes()).is_err(), "{body}");
        }
        let many = format!("{{\"tokens\":[{}1]}}", "1,".repeat(MAX_TOKENS));
        assert!(matches!(
            parse(many.as_bytes()),
            Err(WireError::TooMany { .. })
        ));
    }
}
