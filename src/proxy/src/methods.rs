//! Which methods clients may call, where their messages name a model, and where the id of the model goes.
//!
//! Two sources, and a method must be allowed by both: what the runtime says of its methods (`methodInfos`: where an id is
//! put), and the data plane's configuration (`MM_DATAPLANE_CONFIG`: where one is read). Neither of them given, every method
//! is passed on. The methods of the Open Inference Protocol are known without: their messages begin with the model's name.

use std::collections::{BTreeMap, HashMap};

use berth_splice::FieldPath;
use serde::Deserialize;

use crate::codes::{Fault, Quoted};

/// Methods of the Open Inference Protocol, and of Triton's extensions to it, whose messages name a model, in field 1.
const V2: [&str; 6] = ["ModelInfer", "ModelStreamInfer", "ModelMetadata", "ModelReady", "ModelConfig", "ModelStatistics"];
/// The service they belong to.
const V2_SERVICE: &str = "inference.GRPCInferenceService";
/// By these, packages, services or beginnings of methods, servers are given orders or asked what else they do: no client of
/// ours gets there, whatever is allowed.
const ADMINISTRATION: [&str; 11] = [
    "mmesh.ModelRuntime/",
    // Triton, and KServe's servers in the same service.
    "inference.GRPCInferenceService/Repository",
    "inference.GRPCInferenceService/SystemSharedMemory",
    "inference.GRPCInferenceService/CudaSharedMemory",
    "inference.GRPCInferenceService/TraceSetting",
    "inference.GRPCInferenceService/LogSettings",
    // MLServer.
    "inference.model_repository.",
    // TorchServe.
    "org.pytorch.serve.grpc.management.",
    // TensorFlow Serving and the OpenVINO model server.
    "tensorflow.serving.ModelService/HandleReloadConfig",
    // gRPC's own.
    "grpc.channelz.",
    "grpc.admin.",
];

/// What a field of a message names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// A name, else the id of a version.
    Name,
    /// The id of a version.
    Version,
}

/// Where a message names its model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extraction {
    /// The field.
    pub path: FieldPath,
    /// What it names.
    pub names: Names,
    /// The message counts more than the headers: somebody configured it so.
    pub first: bool,
}

/// What is known of one method.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Method {
    /// Where its messages name a model.
    pub extract: Option<Extraction>,
    /// The field that the resolved id is written into, in each message.
    pub inject: Option<FieldPath>,
}

/// All methods that clients may call.
#[derive(Clone, Debug)]
pub struct Methods {
    /// By full name, `package.Service/Method`.
    known: HashMap<String, Method>,
    /// Whether methods that are not known are passed on.
    others: bool,
}

impl Default for Methods {
    /// Every method, those of the Open Inference Protocol with their field.
    fn default() -> Self {
        Methods { known: v2(), others: true }
    }
}

fn v2() -> HashMap<String, Method> {
    let name = || FieldPath::new(&[1]).ok();
    let method = || Method { extract: name().map(|path| Extraction { path, names: Names::Name, first: false }), inject: name() };
    V2.iter().map(|method_name| (format!("{V2_SERVICE}/{method_name}"), method())).collect()
}

/// By these, clients ask what a model is and how it does: no model computes for them.
const QUESTIONS: [&str; 5] = [
    "inference.GRPCInferenceService/ModelMetadata",
    "inference.GRPCInferenceService/ModelReady",
    "inference.GRPCInferenceService/ModelConfig",
    "inference.GRPCInferenceService/ModelStatistics",
    "tensorflow.serving.PredictionService/GetModelMetadata",
];

/// Whether a model computes for calls to this path, as far as is known.
pub(crate) fn computes(path: &str) -> bool {
    !QUESTIONS.contains(&path.strip_prefix('/').unwrap_or(path))
}

impl Methods {
    /// Those of the Open Inference Protocol and of Triton's extensions that ask a model something; no others, so that nobody
    /// who sends requests gives orders to the server.
    #[must_use]
    pub fn inference() -> Self {
        Methods { known: v2(), others: false }
    }

    /// What a runtime says of its methods: for each the field numbers that lead to the field for the id, none where it wants
    /// no id. Of no method at all: every method. Otherwise those alone, unless it allows `any`.
    ///
    /// # Errors
    /// Every path that is none, with its method.
    pub fn of_runtime(infos: &BTreeMap<String, Vec<u32>>, any: bool) -> Result<Self, String> {
        if infos.is_empty() {
            return Ok(Methods::default());
        }
        let (mut known, mut faults) = (if any { v2() } else { HashMap::new() }, Vec::new());
        for (name, numbers) in infos {
            let inject = match path(numbers) {
                Ok(inject) => inject,
                Err(why) => {
                    faults.push(format!("method {name}: idInjectionPath {numbers:?} {why}"));
                    continue;
                }
            };
            // Where the id is put it can be read, too.
            let extract = inject.clone().map(|path| Extraction { path, names: Names::Name, first: false });
            known.insert(name.trim_start_matches('/').to_owned(), Method { extract, inject });
        }
        if faults.is_empty() { Ok(Methods { known, others: any }) } else { Err(faults.join("; ")) }
    }

    /// These methods, as far as the data plane's configuration allows them, with what it says of where they name models.
    #[must_use]
    pub fn within(mut self, config: &DataPlane) -> Self {
        if !config.others {
            self.known.retain(|name, _| config.rpcs.contains_key(name));
        }
        for (name, extract) in &config.rpcs {
            let allowed = self.others || self.known.contains_key(name);
            if allowed {
                let method = self.known.entry(name.clone()).or_default();
                if extract.is_some() {
                    method.extract.clone_from(extract);
                }
            }
        }
        self.others &= config.others;
        self
    }

    /// What is known of the method with this request path, `/package.Service/Method`.
    ///
    /// # Errors
    /// [`Fault::Unimplemented`]: it is not to be called, or not the name of a method.
    pub fn of(&self, path: &str) -> Result<Method, Fault> {
        if let Some(name) = name_of(path).filter(|name| !ADMINISTRATION.iter().any(|prefix| name.starts_with(prefix))) {
            match self.known.get(name) {
                Some(method) => return Ok(method.clone()),
                None if self.others => return Ok(Method::default()),
                None => {}
            }
        }
        Err(Fault::Unimplemented(format!("method {} is not one that can be called here", Quoted::new(path))))
    }
}

/// The name of the method with this request path. A path in another spelling might be the same method to a server.
fn name_of(path: &str) -> Option<&str> {
    let name = path.strip_prefix('/')?;
    let (service, method) = name.split_once('/')?;
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let fits = service.bytes().all(|byte| is_word(byte) || byte == b'.') && method.bytes().all(is_word);
    (fits && !service.is_empty() && !method.is_empty()).then_some(name)
}

fn path(numbers: &[u32]) -> Result<Option<FieldPath>, String> {
    if numbers.is_empty() { Ok(None) } else { FieldPath::new(numbers).map(Some).map_err(|why| why.to_string()) }
}

/// The data plane's configuration, as `MM_DATAPLANE_CONFIG` gives it:
/// `{"rpcConfigs": {"pkg.Service/Method": {"idExtractionPath": [1, 2], "vModelId": true}}, "allowOtherRpcs": true}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataPlane {
    /// Where each method names its model, if it does.
    rpcs: BTreeMap<String, Option<Extraction>>,
    others: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    rpc_configs: BTreeMap<String, RawRpc>,
    #[serde(default)]
    allow_other_rpcs: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawRpc {
    #[serde(default)]
    id_extraction_path: Vec<u32>,
    #[serde(default, rename = "vModelId")]
    v_model_id: bool,
}

impl DataPlane {
    /// Reads it.
    ///
    /// # Errors
    /// It is no such JSON, has members of other names, or paths that are none; all of the paths' faults together.
    pub fn parse(json: &str) -> Result<Self, String> {
        let raw: Raw = serde_json::from_str(json).map_err(|fault| format!("the data plane's configuration cannot be read: {fault}"))?;
        let (mut rpcs, mut faults) = (BTreeMap::new(), Vec::new());
        for (name, rpc) in raw.rpc_configs {
            let names = if rpc.v_model_id { Names::Name } else { Names::Version };
            match path(&rpc.id_extraction_path) {
                Ok(path) => drop(rpcs.insert(name.trim_start_matches('/').to_owned(), path.map(|path| Extraction { path, names, first: true }))),
                Err(why) => faults.push(format!("rpcConfigs: {name}: idExtractionPath {:?} {why}", rpc.id_extraction_path)),
            }
        }
        if faults.is_empty() { Ok(DataPlane { rpcs, others: raw.allow_other_rpcs }) } else { Err(faults.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(numbers: &[u32]) -> FieldPath {
        FieldPath::new(numbers).unwrap()
    }

    fn infos(pairs: &[(&str, &[u32])]) -> BTreeMap<String, Vec<u32>> {
        pairs.iter().map(|(name, path)| ((*name).to_owned(), path.to_vec())).collect()
    }

    #[test]
    fn without_any_word_all_methods_pass_and_those_of_the_open_protocol_carry_the_name_in_field_one() {
        let methods = Methods::default();
        let infer = methods.of("/inference.GRPCInferenceService/ModelInfer").unwrap();
        assert_eq!(infer.inject, Some(field(&[1])));
        assert_eq!(infer.extract, Some(Extraction { path: field(&[1]), names: Names::Name, first: false }));
        assert_eq!(methods.of("/inference.GRPCInferenceService/ModelStreamInfer").unwrap().inject, Some(field(&[1])));
        assert_eq!(methods.of("/any.Service/Method"), Ok(Method::default()));
    }

    #[test]
    fn a_runtime_that_names_methods_allows_them_alone_unless_it_says_any() {
        let named = infos(&[("a.S/In", &[3, 1]), ("a.S/Plain", &[])]);
        for (any, other) in [(false, false), (true, true)] {
            let methods = Methods::of_runtime(&named, any).unwrap();
            assert_eq!(methods.of("/a.S/In").unwrap().inject, Some(field(&[3, 1])));
            assert_eq!(methods.of("/a.S/Plain"), Ok(Method::default()));
            assert_eq!(methods.of("/a.S/Other").is_ok(), other);
            assert_eq!(methods.of("/inference.GRPCInferenceService/ModelInfer").is_ok(), other);
        }
        assert!(Methods::of_runtime(&infos(&[]), false).unwrap().of("/a.S/Other").is_ok());
        let fault = Methods::of_runtime(&infos(&[("a.S/In", &[0]), ("a.S/B", &[1])]), false).unwrap_err();
        assert!(fault.starts_with("method a.S/In: idInjectionPath [0] "), "{fault}");
    }

    #[test]
    fn the_management_of_runtimes_is_out_of_reach_whatever_is_allowed() {
        let methods = Methods::of_runtime(&infos(&[("mmesh.ModelRuntime/loadModel", &[])]), true).unwrap();
        for methods in [methods, Methods::default()] {
            let fault = methods.of("/mmesh.ModelRuntime/loadModel").unwrap_err();
            assert_eq!(fault, Fault::Unimplemented("method \"/mmesh.ModelRuntime/loadModel\" is not one that can be called here".to_owned()));
        }
    }

    #[test]
    fn what_changes_a_server_and_what_is_no_name_of_a_method_is_refused_whatever_is_allowed() {
        let named: BTreeMap<String, Vec<u32>> = [("inference.GRPCInferenceService/RepositoryModelUnload".to_owned(), vec![1])].into_iter().collect();
        let config = r#"{"rpcConfigs": {"inference.GRPCInferenceService/LogSettings": {}}, "allowOtherRpcs": true}"#;
        let all = [Methods::default(), Methods::of_runtime(&named, true).unwrap(), Methods::default().within(&DataPlane::parse(config).unwrap())];
        for path in [
            "/mmesh.ModelRuntime/loadModel",
            "/inference.GRPCInferenceService/RepositoryIndex",
            "/inference.GRPCInferenceService/RepositoryModelLoad",
            "/inference.GRPCInferenceService/RepositoryModelUnload",
            "/inference.GRPCInferenceService/SystemSharedMemoryStatus",
            "/inference.GRPCInferenceService/SystemSharedMemoryRegister",
            "/inference.GRPCInferenceService/CudaSharedMemoryRegister",
            "/inference.GRPCInferenceService/CudaSharedMemoryUnregister",
            "/inference.GRPCInferenceService/TraceSetting",
            "/inference.GRPCInferenceService/LogSettings",
            "/inference.model_repository.ModelRepositoryService/RepositoryModelLoad",
            "/org.pytorch.serve.grpc.management.ManagementAPIsService/UnregisterModel",
            "/tensorflow.serving.ModelService/HandleReloadConfigRequest",
            "/grpc.channelz.v1.Channelz/GetServers",
            "//mmesh.ModelRuntime/loadModel",
            "/mmesh%2EModelRuntime/loadModel",
            "/mmesh.ModelRuntime/loadModel?x",
            "/a.S/M?x",
            "/a.S/M/N",
            "/a.S/",
            "/M",
            "a.S/M",
            "/a.S/M\u{e9}",
            "",
        ] {
            for methods in &all {
                assert!(matches!(methods.of(path), Err(Fault::Unimplemented(_))), "{path}");
            }
        }
        for path in ["/a.S/M", "/a_b.S1/M_2", "/S/M", "/tensorflow.serving.ModelService/GetModelStatus"] {
            assert!(all.iter().all(|methods| methods.of(path).is_ok()), "{path}");
        }
    }

    #[test]
    fn the_configuration_says_where_ids_are_read_and_which_methods_there_are() {
        let json = r#"{"rpcConfigs": {"a.S/In": {"idExtractionPath": [2, 1], "vModelId": true}, "a.S/Plain": {}}}"#;
        let methods = Methods::default().within(&DataPlane::parse(json).unwrap());
        assert_eq!(methods.of("/a.S/In").unwrap().extract, Some(Extraction { path: field(&[2, 1]), names: Names::Name, first: true }));
        assert_eq!(methods.of("/a.S/Plain"), Ok(Method::default()));
        assert!(methods.of("/a.S/Other").is_err() && methods.of("/inference.GRPCInferenceService/ModelInfer").is_err());

        let others = json.replace("}}}", "}}, \"allowOtherRpcs\": true}");
        let methods = Methods::default().within(&DataPlane::parse(&others).unwrap());
        assert!(methods.of("/a.S/Other").is_ok() && methods.of("/inference.GRPCInferenceService/ModelInfer").unwrap().inject.is_some());

        let runtime = Methods::of_runtime(&infos(&[("a.S/In", &[5])]), false).unwrap().within(&DataPlane::parse(&others).unwrap());
        let both = runtime.of("/a.S/In").unwrap();
        assert_eq!((both.inject, both.extract.unwrap().path), (Some(field(&[5])), field(&[2, 1])));
        assert!(runtime.of("/a.S/Plain").is_err(), "the runtime does not have it");
    }

    #[test]
    fn a_configuration_that_is_none_is_refused_with_its_place() {
        for (json, text) in [
            ("", "cannot be read"),
            (r#"{"rpcConfig": {}}"#, "unknown field `rpcConfig`"),
            (r#"{"rpcConfigs": {"a/B": {"idExtractionPath": [1], "vmodelId": true}}}"#, "unknown field `vmodelId`"),
            (r#"{"rpcConfigs": {"a/B": {"idExtractionPath": [0]}}}"#, "rpcConfigs: a/B: idExtractionPath [0] "),
        ] {
            let fault = DataPlane::parse(json).unwrap_err();
            assert!(fault.contains(text), "{json}: {fault}");
        }
    }
}
