use super::*;
use crate::json::Value;

/// What `serde_json` makes of the same text.
fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(text).is_ok()
}

#[test]
fn it_takes_what_another_parser_takes() {
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let texts = [
        "",
        " ",
        "null",
        "nul",
        "nulls",
        "true",
        "false",
        "fals",
        "0",
        "-0",
        "00",
        "01",
        "-",
        "1.",
        ".5",
        "1.5",
        "1e",
        "1e5",
        "1E+5",
        "1e-5",
        "1e+",
        "-1",
        "+1",
        "18446744073709551615",
        "18446744073709551616",
        "1 2",
        "\"\"",
        "\"",
        "\"a",
        "\"\\\"",
        "\"\\n\\t\\/\\b\\f\\r\"",
        "\"\\x\"",
        "\"\\u00e9\"",
        "\"\\u00g9\"",
        "\"\\u+123\"",
        "\"\\ud83d\\ude00\"",
        "\"\\ud83d\"",
        "\"\\ude00\"",
        "\"\\ud83dx\"",
        "\"\\ud83d\\n\"",
        "\"\\ud83d\\ud83d\"",
        "\"\u{1}\"",
        "\"\u{7f}é😀\"",
        "[]",
        "[ ]",
        "[1]",
        "[1,]",
        "[,1]",
        "[1 2]",
        "[1,2",
        "[",
        "]",
        "[1}",
        "{}",
        "{ }",
        "{\"a\":1}",
        "{\"a\":1,}",
        "{\"a\" : 1 , \"b\":[{}]}",
        "{\"a\"}",
        "{a:1}",
        "{\"a\":}",
        "{1:1}",
        "{\"a\":1 \"b\":2}",
        "\u{feff}1",
        "\r\n\t 1 \n",
        "\u{a0}1",
        "1\0",
    ];
    let deep = [deep(MAX_DEPTH), deep(MAX_DEPTH + 1)];
    for text in texts.into_iter().chain(deep.iter().map(String::as_str)) {
        let skipped = read(text.as_bytes(), |source| source.skip()).is_ok();
        assert_eq!(skipped, is_json(text), "{text:?}");
        assert_eq!(
            Value::read(text.as_bytes()).is_ok(),
            is_json(text),
            "{text:?}"
        );
    }
    assert!(read(b"\"\xff\"", |source| source.skip()).is_err());
}

#[test]
fn a_flaw_is_where_the_text_stops_to_fit() {
    let flaw = |text: &str| Value::read(text.as_bytes()).unwrap_err();
    let at = |line, column, is_end| Flaw {
        line,
        column,
        is_end,
    };
    assert_eq!(flaw("{\n !"), at(2, 2, false));
    assert_eq!(flaw("[1,"), at(1, 4, true));
    assert_eq!(flaw(""), at(1, 1, true));
    assert_eq!(flaw("1\n\n2"), at(3, 1, false));
    assert_eq!(flaw("[1,\n2").to_string(), "an end at line 2 column 2");
    assert_eq!(
        flaw("?").to_string(),
        "something unexpected at line 1 column 1"
    );
}

#[test]
fn texts_without_escapes_are_lent() {
    let text = |json: &'static str| {
        read(json.as_bytes(), |source| match source.token()? {
            Token::Text(text) => Some(text),
            _ => None,
        })
    };
    assert!(matches!(text("\"é\""), Ok(Cow::Borrowed("é"))));
    let escaped = text(r#""\ud83d\ude00\"é\u0000\\""#);
    assert_eq!(escaped, Ok(Cow::Owned("😀\"é\0\\".to_owned())));
}

#[test]
fn what_is_not_wanted_is_a_flaw() {
    let list = |text: &str| {
        read(text.as_bytes(), |source| {
            source.list(&mut |source| source.skip())
        })
    };
    assert_eq!(list("[1,{}]"), Ok(()));
    for other in ["{}", "null", "1", "\"[]\""] {
        assert!(list(other).is_err(), "{other}");
    }
    let nothing = |text: &str| read(text.as_bytes(), |source| Some(source.is_null()));
    assert_eq!(nothing(" null "), Ok(true));
    assert!(nothing("1").is_err(), "it goes on");
}
