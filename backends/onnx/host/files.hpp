// What a host reads from an exported folder, and the rows of the KV cache. Needs nlohmann/json.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

using Bytes = std::vector<std::uint8_t>;

inline std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " + path);
    return {std::istreambuf_iterator<char>(file), {}};
}

// Tensors of a safetensors file, by name: 8 bytes with the length of a JSON header, the header, the data.
inline std::map<std::string, Bytes> read_tensors(const std::string& path) {
    const std::string text = read_file(path);
    std::uint64_t length = 0;
    if (text.size() < sizeof length) throw std::runtime_error(path + " is too short");
    std::memcpy(&length, text.data(), sizeof length);
    if (length > text.size() - sizeof length) throw std::runtime_error(path + " is too short");
    const auto data = text.begin() + sizeof length + length;
    const auto header = nlohmann::json::parse(text.begin() + sizeof length, data);
    std::map<std::string, Bytes> tensors;
    for (const auto& [name, entry] : header.items()) {
        if (name == "__metadata__") continue;
        const auto offsets = entry.at("data_offsets").get<std::vector<std::size_t>>();
        if (offsets.at(0) > offsets.at(1) || offsets[1] > static_cast<std::size_t>(text.end() - data))
            throw std::runtime_error(path + " is too short");
        tensors[name] = Bytes(data + offsets[0], data + offsets[1]);
    }
    return tensors;
}

// The tokens that end an answer: a number or a list in generation_config.json, which not every model has.
// It stands beside the graphs, or above the folder `onnx` of a program for the NPU.
inline std::vector<std::int64_t> end_tokens(const std::string& folder) {
    std::string path = folder + "/generation_config.json";
    if (!std::ifstream(path)) path = folder + "/../generation_config.json";
    if (!std::ifstream(path)) return {};
    const auto entry = nlohmann::json::parse(read_file(path)).value("eos_token_id", nlohmann::json());
    if (entry.is_null()) return {};
    return entry.is_array() ? entry.get<std::vector<std::int64_t>>()
                            : std::vector<std::int64_t>{entry.get<std::int64_t>()};
}

// One state of the model, such as the keys of a layer: `context` rows, the first of which are filled.
struct State {
    std::string past, fresh;  // names of the graph's input and output: past_key.0, new_key.0
    std::vector<std::int64_t> shape;  // of a row: kv_heads, head_dim
    std::size_t row_bytes, prefix;
    Bytes rows;

    // `initial` holds the rows of the prefix: what a sequence begins with.
    State(const std::string& input, std::vector<std::int64_t> row, std::size_t context, const Bytes& initial)
        : past(input), fresh("new_" + input.substr(5)), shape(std::move(row)), row_bytes(1) {
        for (std::int64_t size : shape) row_bytes *= static_cast<std::size_t>(size);
        rows.resize(context * row_bytes);
        if (initial.size() > rows.size()) throw std::runtime_error(past + " has too many rows");
        std::copy(initial.begin(), initial.end(), rows.begin());
        prefix = initial.size() / row_bytes;
    }

    std::uint8_t* row(std::size_t position) { return rows.data() + position * row_bytes; }

    // The shape of some rows.
    std::vector<std::int64_t> shaped(std::size_t count) const {
        std::vector<std::int64_t> found{static_cast<std::int64_t>(count)};
        found.insert(found.end(), shape.begin(), shape.end());
        return found;
    }
};

// Path of the graph for prompts without its ending, such as FOLDER/prefill_128; empty if there is none.
inline std::string prefill_graph(const std::string& folder) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        const std::string name = entry.path().filename().string(), stem = entry.path().stem().string();
        const bool compiled = stem.find("_ctx") != std::string::npos;
        if (name.rfind("prefill_", 0) == 0 && name == stem + ".onnx" && !compiled) return folder + "/" + stem;
    }
    return {};
}

template <class T>
std::int64_t argmax(const T* values, std::size_t count) {
    return std::max_element(values, values + count) - values;
}

inline bool contains(const std::vector<std::int64_t>& ids, std::int64_t id) {
    return std::find(ids.begin(), ids.end(), id) != ids.end();
}

inline void check_prompt(const std::vector<std::int64_t>& ids, std::size_t room) {
    if (ids.empty() || ids.size() > room)
        throw std::runtime_error("the prompt must have 1 to " + std::to_string(room) + " tokens");
}

// A number of the command line that is not negative.
inline std::int64_t number(const std::string& text) {
    if (text.empty() || text.find_first_not_of("0123456789") != std::string::npos)
        throw std::runtime_error("'" + text + "' is not a number");
    return std::stoll(text);
}

inline std::vector<std::int64_t> numbers(char** first, char** last) {
    std::vector<std::int64_t> found;
    for (; first != last; ++first) found.push_back(number(*first));
    return found;
}
