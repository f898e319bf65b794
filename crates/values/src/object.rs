//! JSON objects in documents from outside.

use std::{fmt, marker::PhantomData, str};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _, MapAccess, Visitor, value::MapAccessDeserializer},
};

/// A `T` that was written as a JSON object.
///
/// A derived `Deserialize` of a struct also takes an array, whose elements it assigns to the
/// fields by their order; if every field has a default, `[]` is such a struct. Who reads a
/// document from outside therefore reads an `Object<T>`, by [`Object::from_bytes`] if it has the
/// bytes.
///
/// ```
/// use tailbone_values::Object;
///
/// #[derive(serde::Deserialize)]
/// struct Grant {
///     methods: Vec<String>,
/// }
///
/// assert!(serde_json::from_str::<Grant>(r#"[["*"]]"#).is_ok());
/// assert!(serde_json::from_str::<Object<Grant>>(r#"[["*"]]"#).is_err());
///
/// let Object(grant) = serde_json::from_str::<Object<Grant>>(r#"{"methods": ["list"]}"#)?;
/// assert_eq!(grant.methods, ["list"]);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<T: DeserializeOwned> Object<T> {
    /// Reads a JSON text, which is UTF-8 (RFC 8259, section 8.1). `serde_json::from_slice` takes
    /// any bytes in the members that it skips.
    pub fn from_bytes(text: &[u8]) -> serde_json::Result<T> {
        let text = str::from_utf8(text).map_err(serde_json::Error::custom)?;
        serde_json::from_str(text).map(|Object(value)| value)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(members)).map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_not_utf_8_is_refused_also_where_nobody_reads() {
        #[derive(Deserialize)]
        struct Grant {
            methods: Vec<String>,
        }

        let grant: Grant = Object::from_bytes(br#"{"methods":["list"],"note":"x"}"#).unwrap();
        assert_eq!(grant.methods, ["list"]);
        assert!(
            Object::<Grant>::from_bytes(b"{\"methods\":[\"list\"],\"note\":\"\xc9\"}").is_err()
        );
        assert!(Object::<Grant>::from_bytes(br#"[["list"]]"#).is_err());
    }
}
