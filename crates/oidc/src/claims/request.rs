//! The `claims` parameter (OpenID Connect Core, section 5.5): single claims that a client asks for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The most claims that one request may name.
const MAX_CLAIMS: usize = 100;

/// Which claims are asked for, and where.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClaimsRequest {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub id_token: BTreeMap<String, Wish>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub userinfo: BTreeMap<String, Wish>,
}

/// How one claim is asked for.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Wish {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub essential: bool,
    /// Any of these; no restriction if empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<Value>,
}

/// The parameter is not what the standard says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("claims is not an object as OpenID Connect Core, section 5.5, describes it")]
pub struct BadClaimsRequest;

impl ClaimsRequest {
    pub fn parse(text: &str) -> Result<Self, BadClaimsRequest> {
        let value: Value = serde_json::from_str(text).map_err(|_| BadClaimsRequest)?;
        let members = value.as_object().ok_or(BadClaimsRequest)?;
        Ok(Self {
            id_token: wishes(members, "id_token")?,
            userinfo: wishes(members, "userinfo")?,
        })
    }

    /// The subjects of which the login must be one, if the request names any.
    pub fn subjects(&self) -> impl Iterator<Item = &Value> {
        [&self.id_token, &self.userinfo]
            .into_iter()
            .filter_map(|wishes| wishes.get("sub"))
            .flat_map(|wish| &wish.values)
    }

    /// Whether the time of the login is asked for.
    pub fn wants_auth_time(&self) -> bool {
        self.id_token.contains_key("auth_time")
    }
}

fn wishes(
    members: &Map<String, Value>,
    place: &str,
) -> Result<BTreeMap<String, Wish>, BadClaimsRequest> {
    let named = match members.get(place) {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(named) => named.as_object().ok_or(BadClaimsRequest)?,
    };
    if named.len() > MAX_CLAIMS {
        return Err(BadClaimsRequest);
    }
    let mut wishes = BTreeMap::new();
    for (name, wish) in named {
        let mut read = Wish::default();
        match wish {
            Value::Null => {}
            Value::Object(wish) => {
                if let Some(essential) = wish.get("essential") {
                    read.essential = essential.as_bool().ok_or(BadClaimsRequest)?;
                }
                read.values.extend(wish.get("value").cloned());
                if let Some(values) = wish.get("values") {
                    let values = values.as_array().ok_or(BadClaimsRequest)?;
                    read.values.extend(values.iter().cloned());
                }
            }
            _ => return Err(BadClaimsRequest),
        }
        wishes.insert(name.clone(), read);
    }
    Ok(wishes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for() {
        let text = r#"{"userinfo": {"name": {"essential": true}, "email": null},
            "id_token": {"auth_time": null, "sub": {"value": "userid:1"}, "acr": {"values": ["a"]}},
            "newer": 1}"#;
        let request = ClaimsRequest::parse(text).unwrap();
        assert!(request.userinfo["name"].essential && !request.userinfo["email"].essential);
        assert!(request.wants_auth_time());
        assert_eq!(request.subjects().collect::<Vec<_>>(), ["userid:1"]);
        let stored = serde_json::to_string(&request).unwrap();
        assert_eq!(
            serde_json::from_str::<ClaimsRequest>(&stored).unwrap(),
            request
        );
    }

    #[test]
    fn another_shape_is_refused() {
        for bad in [
            "",
            "[]",
            r#"{"userinfo": []}"#,
            r#"{"userinfo": {"name": true}}"#,
            r#"{"userinfo": {"name": {"essential": "yes"}}}"#,
            r#"{"userinfo": {"name": {"values": "a"}}}"#,
        ] {
            assert_eq!(ClaimsRequest::parse(bad), Err(BadClaimsRequest), "{bad}");
        }
        let many: Map<_, _> = (0..101).map(|n| (n.to_string(), Value::Null)).collect();
        let many = serde_json::json!({"userinfo": many}).to_string();
        assert_eq!(ClaimsRequest::parse(&many), Err(BadClaimsRequest));
    }
}
