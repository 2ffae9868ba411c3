use super::*;

#[test]
fn numbers_are_what_they_were_written_as() {
    let number = |text: &str| Value::read(text.as_bytes());
    assert_eq!(
        number("18446744073709551615").unwrap().as_u64(),
        Some(u64::MAX)
    );
    for (text, value) in [
        ("-7", -7.0),
        ("1.50", 1.5),
        ("2e3", 2000.0),
        ("18446744073709551616", 2_f64.powi(64)),
    ] {
        let read = number(text).unwrap();
        assert_eq!((read.as_u64(), read.as_f64()), (None, Some(value)));
        assert_eq!(read.to_string(), text);
    }
    assert!(number("1e999").is_err());
}

#[test]
fn the_last_member_of_a_name_counts() {
    let tree = Value::read(br#"{"b":1,"a":2,"b":{"c":[3]},"a":4}"#).unwrap();
    assert_eq!(tree.to_string(), r#"{"a":4,"b":{"c":[3]}}"#);
    assert_eq!(tree.as_object().map(Map::len), Some(2));
    let inner = tree.find(&["b", "c"]).and_then(Value::as_array).unwrap();
    assert_eq!(inner, &[Value::from(3_u64)]);
    assert_eq!(tree.find(&["b", "c", "d"]), None);
    assert_eq!(tree.into_member("a"), Some(4_u64.into()));
}

#[cfg(not(target_arch = "wasm32"))]
mod properties {
    use super::*;
    use proptest::prelude::*;

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::Value as Json;
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<u64>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            any::<String>().prop_map(Json::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
                proptest::collection::vec((any::<String>(), inner), 0..6)
                    .prop_map(|members| members.into_iter().collect::<Json>()),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_another_writer_wrote_is_read_and_written_back(json in any_json(), pretty in any::<bool>()) {
            let text = if pretty { format!("{json:#}") } else { json.to_string() };
            let tree = Value::read(text.as_bytes()).unwrap();
            let again: serde_json::Value = serde_json::from_str(&tree.to_string()).unwrap();
            prop_assert_eq!(again, json);
        }
    }
}
