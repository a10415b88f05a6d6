//! Files of YAML or JSON, split into their documents. No cluster.

use std::io::Read as _;

use serde::Deserialize as _;
use serde_json::Value;

use crate::plugin::PluginError;

/// One document of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Document {
    /// Its file.
    pub(crate) file: String,
    /// Its content.
    pub(crate) value: Value,
}

impl Document {
    /// Kind of the object; empty if it has none.
    pub(crate) fn kind(&self) -> &str {
        self.value["kind"].as_str().unwrap_or_default()
    }

    /// Name of the object; empty if it has none.
    pub(crate) fn name(&self) -> &str {
        let metadata = &self.value["metadata"];
        metadata["name"].as_str().or(metadata["generateName"].as_str()).unwrap_or_default()
    }

    /// `CreditMigration simplify-credits`.
    pub(crate) fn title(&self) -> String {
        format!("{} {}", self.kind(), self.name())
    }

    /// The documents of a text; empty ones are left out, the objects of a `List` are taken one by one.
    ///
    /// # Errors
    /// What the YAML parser says, with line and column.
    pub(crate) fn parse(file: &str, text: &str) -> Result<Vec<Document>, String> {
        let mut all = vec![];
        for document in serde_yaml_ng::Deserializer::from_str(text) {
            let value = Value::deserialize(document).map_err(|e| e.to_string())?;
            match value {
                Value::Null => {}
                Value::Object(mut map) if map.get("kind").and_then(Value::as_str) == Some("List") => {
                    let items = map.remove("items").and_then(|i| i.as_array().cloned()).unwrap_or_default();
                    all.extend(items.into_iter().map(|value| Document { file: file.into(), value }));
                }
                value => all.push(Document { file: file.into(), value }),
            }
        }
        Ok(all)
    }
}

/// Text of a file; `-` is standard input.
pub(crate) fn read(file: &str) -> Result<String, PluginError> {
    if file == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(|e| PluginError::File("standard input".into(), e))?;
        return Ok(text);
    }
    std::fs::read_to_string(file).map_err(|e| PluginError::File(file.into(), e))
}

/// All documents of some files.
///
/// # Errors
/// `File` when one cannot be read, `Content` when it is no YAML.
pub(crate) fn read_files(files: &[String]) -> Result<Vec<Document>, PluginError> {
    let mut all = vec![];
    for file in files {
        let text = read(file)?;
        all.extend(Document::parse(file, &text).map_err(|e| PluginError::Content(format!("{file}: {e}")))?);
    }
    Ok(all)
}
