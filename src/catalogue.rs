//! Catalogue: OpenAPI documents in, operations out.
//!
//! One OpenAPI 3.1 document describes one API: its operations, their request schemas, scopes and error dialect. The
//! documents in `config/apis` are embedded; an operator's directory adds to them or replaces them by file name. What
//! an API demands stands in its document and nowhere else; docs/catalogue.md lists the `x-nimgate-*` extensions.

use std::collections::BTreeMap;
use std::path::Path;

use http::{HeaderName, Method};
use serde_json::{Map, Value, json};

use crate::ids::{ApiName, OperationIndex};

mod cacheable;
mod read;
mod twins;
mod usage;

pub use cacheable::Cacheable;
pub use usage::{Tokens, Video};

/// The embedded documents: file stem and text.
const EMBEDDED: [(&str, &str); 10] = [
    ("cosmos-embed1", include_str!("../config/apis/cosmos-embed1.yaml")),
    ("cosmos-predict", include_str!("../config/apis/cosmos-predict.yaml")),
    ("grpc", include_str!("../config/apis/grpc.yaml")),
    ("nemo-curator", include_str!("../config/apis/nemo-curator.yaml")),
    ("nim-embedding", include_str!("../config/apis/nim-embedding.yaml")),
    ("nim-llm", include_str!("../config/apis/nim-llm.yaml")),
    ("nim-reranking", include_str!("../config/apis/nim-reranking.yaml")),
    ("nim-vlm", include_str!("../config/apis/nim-vlm.yaml")),
    ("nvcf", include_str!("../config/apis/nvcf.yaml")),
    ("nvct", include_str!("../config/apis/nvct.yaml")),
];

/// Every API that this gateway speaks.
pub struct Catalogue {
    /// The APIs by name.
    pub apis: BTreeMap<ApiName, Api>,
    /// All operations of all APIs; [`OperationIndex`] points into it.
    pub operations: Vec<Operation>,
}

/// One API: a family of operations with one error dialect.
pub struct Api {
    /// The error dialect of the API.
    pub errors: Errors,
    /// Its operations.
    pub operations: Vec<OperationIndex>,
    /// `#/components` of the document, for `$ref`s of the operations' schemas.
    pub components: Value,
    /// The whole document.
    pub document: Value,
}

/// How an API words a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errors {
    /// The shape of the body.
    pub format: Format,
    /// The status of a request that breaks its schema: 400 or 422.
    pub violation_status: u16,
}

/// The shape of an error body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `{"error":{"message","type","param","code"}}`, what OpenAI's SDKs read.
    OpenAi,
    /// RFC 9457 `application/problem+json`, as NVCF answers.
    Problem,
    /// `{"detail":[{"loc","msg","type"}]}` or `{"detail":"text"}`, as FastAPI answers.
    FastApi,
    /// `grpc-status` and `grpc-message`. An API that words its errors so is called by gRPC and nothing else.
    Grpc,
}

/// One method on one path template.
#[derive(Debug)]
pub struct Operation {
    /// `operationId`: unique within its API, a label in metrics.
    pub id: std::sync::Arc<str>,
    /// The API that it belongs to.
    pub api: ApiName,
    /// The method.
    pub method: Method,
    /// The path template, `{name}` for parameters.
    pub path: String,
    /// The scopes of which a key needs one.
    pub scopes: Vec<String>,
    /// Of the far side's services, the one that has it, where they stand at several hosts.
    pub domain: Option<String>,
    /// What a model is asked for, in the words of OpenTelemetry's GenAI conventions; absent where it is no inference.
    pub gen_ai: Option<std::sync::Arc<str>>,
    /// Whether the body's `model` picks the pool.
    pub routes_by_model: bool,
    /// The path parameter that names another request, whose maker alone may ask.
    pub polls: Option<String>,
    /// JSON pointers to the strings of a request that may hold media, `*` for every element of a list.
    pub media: Vec<String>,
    /// Its answers may name a request that can be asked for later, in the member `reqId`.
    pub names_request: bool,
    /// Whether running it twice is as good as once: reads, and what is computed from the request alone.
    pub repeatable: bool,
    /// JSON pointers into a 2xx answer that must hold something, or the answer is a failure in disguise.
    pub answer_requires: std::sync::Arc<[String]>,
    /// Whether its event streams announce their end: `data: [DONE]`, or an event of a type that says so.
    pub stream_ends: bool,
    /// How its requests bound the tokens of their answers; absent where it uses none.
    pub tokens: Option<Tokens>,
    /// How its answers may be kept item by item; absent where they may not.
    pub cacheable: Option<Cacheable>,
    /// How its requests state the length of a video; absent where it makes none.
    pub video: Option<Video>,
    /// The largest request body, in bytes.
    pub body_limit: usize,
    /// Client headers that the operation documents, which therefore pass upstream.
    pub headers: Vec<HeaderName>,
    /// What the request body is.
    pub body: Body,
    /// Schema of the query parameters as one object; absent where none are documented.
    pub query: Option<Value>,
    /// Schema of the path parameters as one object.
    pub path_params: Option<Value>,
    /// Schema of the header parameters as one object, names in lower case.
    pub header_params: Option<Value>,
    /// Requests that pass and requests that fail, each naming the rule that it shows.
    pub examples: Vec<Value>,
}

/// What the gateway does with a request body.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Documented as absent: passed on as it comes.
    None,
    /// JSON, read whole and checked against this schema.
    Json {
        /// The schema.
        schema: Value,
        /// Whether an empty body is refused.
        required: bool,
    },
    /// Any content: streams through unread.
    Opaque,
}

/// Why a document can not be used.
#[derive(Debug)]
pub struct BadDocument {
    /// The file, or the name of an embedded document.
    pub file: String,
    /// What is wrong, and where.
    pub reason: String,
}

impl std::fmt::Display for BadDocument {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.file, self.reason)
    }
}

impl std::error::Error for BadDocument {}

impl Catalogue {
    /// The embedded documents, then those of `directory` (`*.yaml`), which replace embedded ones of the same name.
    /// `parse` turns YAML text into a value.
    pub fn load(
        directory: Option<&Path>,
        parse: impl Fn(&str) -> Result<Value, String>,
        default_body_limit: usize,
    ) -> Result<Self, BadDocument> {
        let mut texts: BTreeMap<String, Text> =
            EMBEDDED.iter().map(|(name, text)| ((*name).into(), ((*name).into(), (*text).into()))).collect();
        if let Some(directory) = directory {
            texts.extend(read_directory(directory)?);
        }
        let mut catalogue = Self { apis: BTreeMap::new(), operations: Vec::new() };
        for (name, (file, text)) in texts {
            let document = parse(&text).map_err(|reason| BadDocument { file: file.clone(), reason })?;
            catalogue
                .add(ApiName::from(name), document, default_body_limit)
                .map_err(|reason| BadDocument { file, reason })?;
        }
        Ok(catalogue)
    }

    fn add(&mut self, name: ApiName, mut document: Value, default_body_limit: usize) -> Result<(), String> {
        twins::add(&mut document)?;
        let errors = read::errors(&document)?;
        let operations = read::operations(&name, &document, default_body_limit)?;
        let first = self.operations.len();
        let indices = (first..first + operations.len()).map(OperationIndex).collect();
        self.operations.extend(operations);
        let components = document.get("components").cloned().unwrap_or_else(|| json!({}));
        self.apis.insert(name, Api { errors, operations: indices, components, document });
        Ok(())
    }

    /// Whether an API is called by gRPC.
    pub fn is_grpc(&self, api: &ApiName) -> bool {
        self.apis.get(api).is_some_and(|api| api.errors.format == Format::Grpc)
    }

    /// An operation by its index.
    pub fn operation(&self, index: OperationIndex) -> &Operation {
        &self.operations[index.0]
    }

    /// One OpenAPI document with the operations of `apis`. Where two APIs share a path, the second is listed with the
    /// API's name as fragment, since OpenAPI knows one operation per method and path; component names get a prefix.
    pub fn merged<'a>(&self, apis: impl IntoIterator<Item = &'a ApiName>, server: &str) -> Value {
        let mut paths = Map::new();
        let mut schemas = Map::new();
        for name in apis {
            let Some(api) = self.apis.get(name) else { continue };
            let mut document = api.document.clone();
            read::prefix_refs(&mut document, name.as_str());
            let listed = document.get_mut("components").and_then(|c| c.get_mut("schemas")).map(Value::take);
            if let Some(Value::Object(listed)) = listed {
                schemas.extend(listed.into_iter().map(|(k, v)| (format!("{name}.{k}"), v)));
            }
            let Some(Value::Object(items)) = document.get_mut("paths").map(Value::take) else { continue };
            for (path, item) in items {
                let key = if paths.contains_key(&path) { format!("{path}#{name}") } else { path };
                paths.insert(key, read::tagged(item, name));
            }
        }
        json!({
            "openapi": "3.1.0",
            "info": { "title": "nimgate", "version": env!("CARGO_PKG_VERSION"),
                "description": "All APIs behind this gateway. Paths shared by several APIs carry the API's name as fragment; the model or the pool decides which one applies." },
            "servers": [{ "url": server }],
            "security": [{ "key": [] }],
            "paths": paths,
            "components": { "schemas": schemas, "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } } },
        })
    }
}

/// A file and its text.
type Text = (String, String);

/// The documents of a directory by API name.
fn read_directory(directory: &Path) -> Result<Vec<(String, Text)>, BadDocument> {
    let bad =
        |reason: std::io::Error| BadDocument { file: directory.display().to_string(), reason: reason.to_string() };
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(bad)? {
        let path = entry.map_err(bad)?.path();
        let (Some("yaml" | "yml"), Some(stem)) =
            (path.extension().and_then(|e| e.to_str()), path.file_stem().and_then(|s| s.to_str()))
        else {
            continue;
        };
        let text = std::fs::read_to_string(&path)
            .map_err(|e| BadDocument { file: path.display().to_string(), reason: e.to_string() })?;
        texts.push((stem.to_owned(), (path.display().to_string(), text)));
    }
    Ok(texts)
}
