//! What Redis answers, as far as it is asked: a flat array of byte strings, or an error.
//!
//! RESP, version 2. Linear; nothing is copied.

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The strings of an array. A number, or a nil, is an empty one.
    Array(Vec<&'a [u8]>),
    /// An error, in Redis' words.
    Error(&'a [u8]),
}

/// Reads an answer; `None` if it is neither. An array of more than `most` strings is not read.
pub fn read(bytes: &[u8], most: usize) -> Option<Answer<'_>> {
    let (kind, mut rest) = bytes.split_first()?;
    match kind {
        b'-' => line(&mut rest).map(Answer::Error),
        b'*' => {
            let count = number(line(&mut rest)?)?;
            if count > most {
                return None;
            }
            let mut strings = Vec::new();
            for _ in 0..count {
                strings.push(string(&mut rest)?);
            }
            Some(Answer::Array(strings))
        }
        _ => None,
    }
}

fn string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (kind, after) = rest.split_first()?;
    *rest = after;
    let head = line(rest)?;
    match (kind, head) {
        (b'$', b"-1") | (b':', _) => Some(b""),
        (b'$', length) => {
            let (string, after) = rest.split_at_checked(number(length)?)?;
            *rest = after.strip_prefix(b"\r\n")?;
            Some(string)
        }
        _ => None,
    }
}

fn line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    let (line, after) = rest.split_at_checked(end)?;
    *rest = after.get(2..)?;
    Some(line)
}

fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn arrays_and_errors_are_read() {
        let bytes = b"*3\r\n$3\r\n1-0\r\n$4\r\n\0\r\n\xff\r\n:5\r\n";
        let strings: [&[u8]; 3] = [b"1-0", b"\0\r\n\xff", b""];
        assert_eq!(read(bytes, 3), Some(Answer::Array(strings.to_vec())));
        assert_eq!(read(bytes, 2), None, "more than asked for");
        assert_eq!(read(b"*0\r\n", 3), Some(Answer::Array(vec![])));
        let error = Some(Answer::Error(b"OOM not now".as_slice()));
        assert_eq!(read(b"-OOM not now\r\n", 3), error);
    }

    #[test]
    fn anything_else_is_not() {
        for bytes in [
            &b""[..],
            b"*",
            b"*2\r\n",
            b"*1\r\n$5\r\nabc\r\n",
            b"*1\r\n$3\r\nabcde",
            b"*1\r\n*0\r\n",
            b"*-1\r\n",
            b"*99999999999999999999\r\n",
            b"$3\r\nabc\r\n",
            b"<html>",
        ] {
            assert_eq!(read(bytes, 10), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn garbage_breaks_nothing(bytes: Vec<u8>) {
            let _ = read(&bytes, 10);
        }
    }
}
