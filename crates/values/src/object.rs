//! JSON objects in documents from outside.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

/// A `T` that was written as a JSON object.
///
/// A derived `Deserialize` of a struct also takes an array, whose elements it assigns to the
/// fields by their order; if every field has a default, `[]` is such a struct. Who reads a
/// document from outside therefore reads an `Object<T>`.
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
