// Greedy decoding with ONNX Runtime and Qualcomm's QNN execution provider, for a folder with graphs of fixed
// lengths: decode.onnx, prefill_N.onnx, or what was compiled for HTP, decode_ctx.onnx, prefill_N_ctx.onnx.
//
//     g++ -std=c++17 ort_qnn.cpp -I ORT/include -L ORT/lib -lonnxruntime -o ort_qnn
//     ./ort_qnn FOLDER PLUGIN BACKEND MAX_NEW_TOKENS ID...        prints the ids of the answer
//
// PLUGIN is libonnxruntime_providers_qnn.so. BACKEND is libQnnHtp.so.
#include <onnxruntime_cxx_api.h>

#include <cstdio>
#include <exception>
#include <numeric>

#include "files.hpp"

namespace {

const Ort::MemoryInfo& memory() {
    static const auto info = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    return info;
}

// A graph takes `tokens` ids behind `past` rows of the cache; both are fixed.
struct Graph {
    Ort::Session session;
    std::size_t tokens, past;

    std::size_t context() const { return past + tokens; }  // positions in all: the same for every graph
};

struct Sequence {
    std::vector<State> states;
    std::size_t position;
};

Ort::SessionOptions qnn_options(Ort::Env& env, const std::string& plugin, const std::string& backend) {
    env.RegisterExecutionProviderLibrary("QNNExecutionProvider", plugin);
    std::vector<Ort::ConstEpDevice> devices;
    for (const Ort::ConstEpDevice& device : env.GetEpDevices())
        if (devices.empty() && std::string(device.EpName()) == "QNNExecutionProvider")
            devices.push_back(device);
    if (devices.empty()) throw std::runtime_error("QNN finds no device");
    Ort::SessionOptions options;
    options.AddConfigEntry("session.disable_cpu_ep_fallback", "1");  // all on the NPU, or an error
    const std::unordered_map<std::string, std::string> settings{{"backend_path", backend}, {"htp_arch", "73"}};
    options.AppendExecutionProvider_V2(env, devices, settings);
    return options;
}

std::vector<std::int64_t> input_shape(const Ort::Session& session, std::size_t input) {
    const auto type = session.GetInputTypeInfo(input);
    return type.GetTensorTypeAndShapeInfo().GetShape();
}

// The graph NAME_ctx.onnx if it was written, else NAME.onnx.
Graph load(Ort::Env& env, const Ort::SessionOptions& options, const std::string& stem) {
    const std::string compiled = stem + "_ctx.onnx";
    const std::string path = std::ifstream(compiled) ? compiled : stem + ".onnx";
    Graph graph{Ort::Session(env, path.c_str(), options), 0, 0};
    Ort::AllocatorWithDefaultOptions allocator;
    for (std::size_t i = 0; i < graph.session.GetInputCount(); ++i) {
        const std::string name = graph.session.GetInputNameAllocated(i, allocator).get();
        const auto length = static_cast<std::size_t>(input_shape(graph.session, i).at(0));
        if (name == "input_ids") graph.tokens = length;
        if (name.rfind("past_", 0) == 0) graph.past = length;
    }
    return graph;
}

Sequence start(const Graph& graph, const std::string& folder) {
    const auto initial = read_tensors(folder + "/initial_cache.safetensors");
    Sequence sequence{};
    Ort::AllocatorWithDefaultOptions allocator;
    for (std::size_t i = 0; i < graph.session.GetInputCount(); ++i) {
        const std::string name = graph.session.GetInputNameAllocated(i, allocator).get();
        if (name.rfind("past_", 0) != 0) continue;
        const auto shape = input_shape(graph.session, i);
        const auto found = initial.find(name);
        sequence.states.emplace_back(name, std::vector<std::int64_t>(shape.begin() + 1, shape.end()),
                                     graph.context(), found == initial.end() ? Bytes() : found->second);
    }
    sequence.position = sequence.states.at(0).prefix;
    return sequence;
}

// Append at most `graph.tokens` ids to the sequence; the token that follows.
//
// The cache rule: the graph is given the first `past` rows. It reads those before `position`, whatever the
// others hold. It gives a row for each of its tokens. Those of real tokens go to `position` and behind; those
// of padding, which comes last, are dropped.
std::int64_t append(Graph& graph, Sequence& sequence, const std::int64_t* ids, std::size_t count) {
    std::vector<std::int32_t> padded(graph.tokens), positions(graph.tokens);
    std::copy(ids, ids + count, padded.begin());
    std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(sequence.position));
    std::vector<const char*> inputs{"input_ids", "position_ids"}, outputs{"logits"};
    std::vector<Ort::Value> given, made;
    const auto length = static_cast<std::int64_t>(graph.tokens);
    for (auto* values : {&padded, &positions})
        given.push_back(
            Ort::Value::CreateTensor<std::int32_t>(memory(), values->data(), graph.tokens, &length, 1));
    made.emplace_back(nullptr);
    for (State& state : sequence.states) {
        const auto shape = state.shaped(graph.past);
        inputs.push_back(state.past.c_str());
        given.push_back(Ort::Value::CreateTensor<std::uint8_t>(
            memory(), state.row(0), graph.past * state.row_bytes, shape.data(), shape.size()));
        outputs.push_back(state.fresh.c_str());
        made.emplace_back(nullptr);
    }
    graph.session.Run(Ort::RunOptions(), inputs.data(), given.data(), given.size(), outputs.data(),
                      made.data(), made.size());
    for (std::size_t i = 0; i < sequence.states.size(); ++i) {
        State& state = sequence.states[i];
        std::memcpy(state.row(sequence.position), made[i + 1].GetTensorData<std::uint8_t>(),
                    count * state.row_bytes);
    }
    sequence.position += count;
    // Logits are u16 with one positive scale for all: the largest integer is the largest logit.
    const auto shape = made[0].GetTensorTypeAndShapeInfo().GetShape();
    const auto vocabulary = static_cast<std::size_t>(shape.at(1));
    return argmax(made[0].GetTensorData<std::uint16_t>() + (count - 1) * vocabulary, vocabulary);
}

// The prompt goes through the larger graph as long as that has room for it, then token by token.
std::int64_t prefill(Graph& many, Graph& one, Sequence& sequence, const std::vector<std::int64_t>& ids) {
    std::int64_t token = 0;
    for (std::size_t done = 0; done < ids.size();) {
        Graph& graph = ids.size() - done > 1 && sequence.position <= many.past ? many : one;
        const std::size_t count = std::min(graph.tokens, ids.size() - done);
        token = append(graph, sequence, ids.data() + done, count);
        done += count;
    }
    return token;
}

void generate(const std::string& folder, const std::string& plugin, const std::string& backend,
              std::int64_t most, const std::vector<std::int64_t>& prompt) {
    Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "mqc");
    const auto options = qnn_options(env, plugin, backend);
    Graph one = load(env, options, folder + "/decode");
    const std::string larger = prefill_graph(folder);
    Graph many = load(env, options, larger.empty() ? folder + "/decode" : larger);
    Sequence sequence = start(one, folder);
    const auto stops = end_tokens(folder);
    check_prompt(prompt, one.context() - sequence.position);
    std::int64_t token = prefill(many, one, sequence, prompt);
    for (std::int64_t i = 0; i < most && !contains(stops, token); ++i) {
        std::printf("%lld\n", static_cast<long long>(token));
        if (sequence.position == one.context()) break;
        token = append(one, sequence, &token, 1);
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 6) {
        std::fprintf(stderr, "usage: %s FOLDER PLUGIN BACKEND MAX_NEW_TOKENS ID...\n", argv[0]);
        return 2;
    }
    try {
        generate(argv[1], argv[2], argv[3], number(argv[4]), numbers(argv + 5, argv + argc));
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
