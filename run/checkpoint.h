// GPT-2 checkpoints as published: a directory with model.safetensors and config.json. What is easy to get wrong:
// - Linear weights lie as [out, in] in our memory (and in PyTorch's Linear); the published files hold GPT-2's Conv1D
//   layout, [in, out]. A parameter marked conv1d is transposed on its way in and out; the square ones (attn.c_proj)
//   would load the wrong way round without any error.
// - The head is tied to wte: the file has no lm_head.weight, or one that is equal to the last bit.
// - Files may say "transformer.h.0.." or "h.0.."; old ones carry the causal masks (h.N.attn.bias) as tensors.
// - What config.json says and this program does not compute (another activation, say) is refused, not ignored.
// Beside these two files a run leaves what it needs to go on, to the bit: state.safetensors (moments, scales, amax
// histories) and state.json (step, seed, arm, options); and `checksums`, in which every file's size and hash stand, and
// last the hash of the lines before, so that no bit of a checkpoint can change unnoticed.
#pragma once
#include "run/config.h"
#include "run/json.h"
#include "run/safetensors.h"
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

struct NamedTensor {
    std::string name;           // as published, without "transformer."
    std::vector<int64_t> shape; // in our memory
    float* data;                // host
    bool conv1d;                // a matrix that the file holds transposed
};

// path: a checkpoint directory; a .safetensors file with config.json beside it; or llm.c's FILE.bin (run/llmc.h).
// Without a config.json the sizes are those of the tensors, and heads, which no shape tells, is asked for (0: not
// given). Reads no tensor data.
Config read_config(const std::string& path, int heads = 0);
// Fills every parameter from the file: F32, BF16 or F16, converted exactly. A missing, unknown or misshapen tensor is
// an error that names it; names and shapes are checked before anything is read, and checksums if there are any.
void load_checkpoint(const std::string& path, const std::vector<NamedTensor>& params);

struct TrainingState {
    std::vector<NamedTensor> tensors; // state.safetensors, FP32
    Json about;                       // state.json
};
// Writes FP32 into DIR.tmp and renames it to DIR when it is complete and on the disk. An older checkpoint in DIR is
// kept until then; a DIR that holds anything else is an error. Parent directories are created. An error says how much
// room is needed if that was missing, and leaves nothing behind.
void save_checkpoint(const std::string& dir, const Config& c, const std::vector<NamedTensor>& params,
                     const TrainingState* state = nullptr);
// The same for tensors of any type. quantization: what config.json says of that.
void save_model(const std::string& dir, const Config& c, const std::vector<TensorOut>& tensors, const TextMap& metadata,
                const Json& quantization = Json(), const TrainingState* state = nullptr);
std::string model_path(const std::string& path); // the model's file in a checkpoint
Safetensors open_model(const std::string& path);
// An error that names the file, if one is not what `checksums` says, or if there are no checksums: which is none to
// verify_model(), for other programs write none.
void verify_checkpoint(const std::string& dir);
void verify_model(const std::string& path);
// Fills tensors by name; one that the file lacks, or has in another shape, is an error. Others are not read.
void load_state(const std::string& dir, const std::vector<NamedTensor>& tensors);
Json state_of(const std::string& dir); // state.json
std::unique_ptr<Safetensors> open_state(const std::string& path); // of a model that has one; else nullptr

// The newest of a run's checkpoints DIR/step-NNNNNN that is complete, undamaged and of this arm; "" if there is none.
struct NewestCheckpoint {
    std::string dir;
    int64_t step = 0;
    std::string passed_over; // newer ones, and why, joined by "; "
};
NewestCheckpoint newest_checkpoint(const std::string& dir, const std::string& recipe, int64_t seed, const Config& c);
// When `step` has been saved: removes all of DIR's step-NNNNNN up to it but the newest `keep`, and what an interrupted
// save or removal has left. Later steps, which have been passed over, stay until their number comes.
void prune_checkpoints(const std::string& dir, int64_t step, int keep);
// One line per tensor, then, of a run, scales and where it stood, and sizes and total; as JSON one object per line. Reads
// any safetensors file, and llm.c's.
std::string inspect_checkpoint(const std::string& path, bool json);
