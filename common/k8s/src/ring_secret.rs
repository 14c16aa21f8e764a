//! The Secret with the key ring, with nothing but the ring in it.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::{
    names::SECRET_KEY,
    object::{Content, take},
};

/// The ring's document, as it is in the Secret; `None` where the Secret has no such entry. Wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct RingDocument(pub Option<Zeroizing<Vec<u8>>>);

impl fmt::Debug for RingDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = self.0.as_ref().map(|document| document.len());
        f.debug_tuple("RingDocument").field(&length).finish()
    }
}

impl Content for RingDocument {
    fn read(mut object: Value) -> Result<Self, String> {
        match take(&mut take(&mut object, "data"), SECRET_KEY) {
            Value::Null => Ok(Self(None)),
            Value::String(text) => {
                let text = Zeroizing::new(text);
                let decoded = BASE64.decode(text.as_bytes()).map(Zeroizing::new);
                decoded
                    .map(|document| Self(Some(document)))
                    .map_err(|_| format!("data.{SECRET_KEY}: not base64"))
            }
            _ => Err(format!("data.{SECRET_KEY}: not a text")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn document_is_read_and_not_printed() {
        let document = RingDocument::read(json!({"data": {"keys": "aHVzaA==", "other": "!"}})).unwrap();
        assert_eq!(document.0.as_ref().unwrap().as_slice(), b"hush");
        let shown = format!("{document:?}");
        assert_eq!(shown, "RingDocument(Some(4))");
    }

    #[test]
    fn missing_document_is_none_and_a_broken_one_an_error() {
        for object in
            [json!({}), json!({"data": null}), json!({"data": {"other": "aHVzaA=="}}), json!("text")]
        {
            assert_eq!(RingDocument::read(object), Ok(RingDocument(None)));
        }
        for keys in [json!("hush!"), json!(["hush"])] {
            let error = RingDocument::read(json!({"data": {"keys": keys}})).unwrap_err();
            assert!(!error.contains("hush"), "{error}");
        }
    }
}
