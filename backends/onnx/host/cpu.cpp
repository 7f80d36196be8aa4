// Greedy decoding with ONNX Runtime's CPU provider, for a folder with model.onnx (QDQ or strict form).
//
//     g++ -std=c++17 cpu.cpp -I ORT/include -L ORT/lib -lonnxruntime -o cpu
//     ./cpu FOLDER MAX_NEW_TOKENS ID...        prints the ids of the answer
#include <onnxruntime_cxx_api.h>

#include <cstdio>
#include <exception>

#include "files.hpp"

namespace {

const Ort::MemoryInfo& memory() {
    static const auto info = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    return info;
}

Ort::Value ids_tensor(std::vector<std::int64_t>& ids) {
    const auto size = static_cast<std::int64_t>(ids.size());
    return Ort::Value::CreateTensor<std::int64_t>(memory(), ids.data(), ids.size(), &size, 1);
}

Ort::Value rows_tensor(State& state, std::size_t first, std::size_t count) {
    const auto shape = state.shaped(count);
    return Ort::Value::CreateTensor<std::uint8_t>(
        memory(), state.row(first), count * state.row_bytes, shape.data(), shape.size());
}

// Logits are float in the QDQ form, s32 in the strict form. Their scale is positive: the largest stays it.
std::int64_t largest(const Ort::Value& logits) {
    const auto info = logits.GetTensorTypeAndShapeInfo();
    const std::size_t count = info.GetElementCount();
    return info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
               ? argmax(logits.GetTensorData<float>(), count)
               : argmax(logits.GetTensorData<std::int32_t>(), count);
}

std::vector<State> read_states(const Ort::Session& session, const std::string& folder, std::size_t context) {
    const auto initial = read_tensors(folder + "/initial_cache.safetensors");
    std::vector<State> states;
    Ort::AllocatorWithDefaultOptions allocator;
    for (std::size_t i = 0; i < session.GetInputCount(); ++i) {
        const std::string name = session.GetInputNameAllocated(i, allocator).get();
        if (name.rfind("past_", 0) != 0) continue;
        const auto type = session.GetInputTypeInfo(i);
        const auto shape = type.GetTensorTypeAndShapeInfo().GetShape();
        const auto found = initial.find(name);
        states.emplace_back(name, std::vector<std::int64_t>(shape.begin() + 1, shape.end()), context,
                            found == initial.end() ? Bytes() : found->second);
    }
    return states;
}

// Append tokens to the sequence; the token that follows. The session reads the rows before `position` where
// they are, and writes the new ones behind them.
std::int64_t append(Ort::Session& session, std::vector<State>& states, std::size_t& position,
                    std::vector<std::int64_t> ids) {
    std::vector<std::int64_t> positions, last{static_cast<std::int64_t>(ids.size()) - 1};
    for (std::size_t i = 0; i < ids.size(); ++i)
        positions.push_back(static_cast<std::int64_t>(position + i));
    std::vector<const char*> inputs{"input_ids", "position_ids", "logit_rows"}, outputs{"logits"};
    std::vector<Ort::Value> given, made;
    given.push_back(ids_tensor(ids));
    given.push_back(ids_tensor(positions));
    given.push_back(ids_tensor(last));
    made.emplace_back(nullptr);
    for (State& state : states) {
        inputs.push_back(state.past.c_str());
        given.push_back(rows_tensor(state, 0, position));
        outputs.push_back(state.fresh.c_str());
        made.push_back(rows_tensor(state, position, ids.size()));
    }
    session.Run(Ort::RunOptions(), inputs.data(), given.data(), given.size(), outputs.data(), made.data(),
                made.size());
    position += ids.size();
    return largest(made[0]);
}

void generate(const std::string& folder, std::int64_t most, const std::vector<std::int64_t>& prompt) {
    const auto manifest = nlohmann::json::parse(read_file(folder + "/manifest.json"));
    const auto context = manifest.at("context").get<std::size_t>();  // positions in all
    const auto stops = end_tokens(folder);
    Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "mqc");
    Ort::SessionOptions options;
    options.AddConfigEntry("session.x64quantprecision", "1");  // x86 without VNNI: exact products
    Ort::Session session(env, (folder + "/model.onnx").c_str(), options);
    auto states = read_states(session, folder, context);
    std::size_t position = states.at(0).prefix;
    check_prompt(prompt, context - position);
    std::int64_t token = append(session, states, position, prompt);
    for (std::int64_t i = 0; i < most && !contains(stops, token); ++i) {
        std::printf("%lld\n", static_cast<long long>(token));
        if (position == context) break;
        token = append(session, states, position, {token});
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 4) {
        std::fprintf(stderr, "usage: %s FOLDER MAX_NEW_TOKENS ID...\n", argv[0]);
        return 2;
    }
    try {
        generate(argv[1], number(argv[2]), numbers(argv + 3, argv + argc));
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
