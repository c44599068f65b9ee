"""Names of the files in an artifact, as its loaders expect them."""

MODEL_XML = "openvino_model.xml"
MODEL_BIN = "openvino_model.bin"
TOKENIZER_XML = "openvino_tokenizer.xml"
DETOKENIZER_XML = "openvino_detokenizer.xml"

# And in an ONNX artifact.
MODEL_ONNX = "model.onnx"
MODEL_ONNX_DATA = "model.onnx.data"
GENAI_CONFIG = "genai_config.json"
ONNX_RECORD = "onnx_export.json"
