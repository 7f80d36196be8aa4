// Greedy decoding with ONNX Runtime for Android (ai.onnxruntime), for a folder with model.onnx (QDQ or strict
// form). org.json is a part of Android. Token ids in, token ids out.

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import ai.onnxruntime.TensorInfo;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.nio.LongBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

public final class Generate implements AutoCloseable {
    /** One state of the model, such as the keys of a layer: a row for each position, the first are filled. */
    private static final class State {
        final String past, fresh;
        final long[] shape;
        final int rowBytes;
        final ByteBuffer rows;

        State(String past, long[] shape, int context) {
            this.past = past;
            this.fresh = "new_" + past.substring("past_".length());
            this.shape = shape;
            int bytes = 1;
            for (int i = 1; i < shape.length; i++) bytes *= (int) shape[i];
            rowBytes = bytes;
            rows = ByteBuffer.allocateDirect(context * bytes).order(ByteOrder.nativeOrder());
        }

        /** The rows before a position, where they are. */
        OnnxTensor before(OrtEnvironment env, int position) throws OrtException {
            ByteBuffer view = rows.duplicate().order(ByteOrder.nativeOrder());
            view.position(0);
            view.limit(position * rowBytes);
            long[] size = shape.clone();
            size[0] = position;
            return OnnxTensor.createTensor(env, view, size, OnnxJavaType.UINT8);
        }

        void write(int position, ByteBuffer fresh) {
            ByteBuffer view = rows.duplicate();
            view.position(position * rowBytes);
            view.put(fresh);
        }
    }

    private final OrtEnvironment env = OrtEnvironment.getEnvironment();
    private final OrtSession session;
    private final List<State> states = new ArrayList<>();
    private final Set<Long> stops = new HashSet<>();
    private final int prefix, context;

    public Generate(Path folder) throws OrtException, IOException, JSONException {
        JSONObject manifest = new JSONObject(text(folder.resolve("manifest.json")));
        context = manifest.getInt("context");
        prefix = manifest.getJSONArray("prefix").length();
        Path generation = folder.resolve("generation_config.json");
        if (Files.exists(generation)) {
            Object stop = new JSONObject(text(generation)).opt("eos_token_id");
            JSONArray list = stop instanceof JSONArray ? (JSONArray) stop : new JSONArray();
            if (stop instanceof Number) list.put(stop);
            for (int i = 0; i < list.length(); i++) stops.add(list.getLong(i));
        }
        try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
            options.addConfigEntry("session.x64quantprecision", "1"); // for x86 without VNNI; ARM ignores it
            session = env.createSession(folder.resolve("model.onnx").toString(), options);
        }
        Map<String, byte[]> initial = tensors(folder.resolve("initial_cache.safetensors"));
        for (String name : session.getInputNames()) {
            if (!name.startsWith("past_")) continue;
            long[] shape = ((TensorInfo) session.getInputInfo().get(name).getInfo()).getShape();
            State state = new State(name, shape, context);
            if (initial.containsKey(name)) state.write(0, ByteBuffer.wrap(initial.get(name)));
            states.add(state);
        }
    }

    /** The ids of the answer to a prompt, at most {@code most}. */
    public List<Long> answer(long[] prompt, int most) throws OrtException {
        if (prompt.length == 0 || prompt.length > context - prefix) {
            throw new IllegalArgumentException("the prompt must have 1 to " + (context - prefix) + " tokens");
        }
        List<Long> found = new ArrayList<>();
        int position = prefix;
        long[] ids = prompt;
        while (found.size() < most && position + ids.length <= context) {
            long token = append(ids, position);
            position += ids.length;
            if (stops.contains(token)) break;
            found.add(token);
            ids = new long[] {token};
        }
        return found;
    }

    /** Appends tokens to the sequence; the token that follows. New rows of the cache go behind the others. */
    private long append(long[] ids, int position) throws OrtException {
        long[] positions = new long[ids.length];
        for (int i = 0; i < ids.length; i++) positions[i] = position + i;
        Map<String, OnnxTensor> feeds = new HashMap<>();
        try {
            feeds.put("input_ids", longs(ids));
            feeds.put("position_ids", longs(positions));
            feeds.put("logit_rows", longs(ids.length - 1));
            for (State state : states) feeds.put(state.past, state.before(env, position));
            try (OrtSession.Result result = session.run(feeds)) {
                for (State state : states) {
                    state.write(position, ((OnnxTensor) result.get(state.fresh).get()).getByteBuffer());
                }
                return largest((OnnxTensor) result.get("logits").get());
            }
        } finally {
            for (OnnxTensor tensor : feeds.values()) tensor.close();
        }
    }

    /** Logits are float in the QDQ form, s32 in the strict form. */
    private static long largest(OnnxTensor logits) {
        int best = 0;
        if (logits.getInfo().type == OnnxJavaType.FLOAT) {
            FloatBuffer values = logits.getFloatBuffer();
            for (int i = 1; i < values.limit(); i++) if (values.get(i) > values.get(best)) best = i;
        } else {
            IntBuffer values = logits.getIntBuffer();
            for (int i = 1; i < values.limit(); i++) if (values.get(i) > values.get(best)) best = i;
        }
        return best;
    }

    private OnnxTensor longs(long... values) throws OrtException {
        return OnnxTensor.createTensor(env, LongBuffer.wrap(values), new long[] {values.length});
    }

    private static String text(Path path) throws IOException {
        return new String(Files.readAllBytes(path), StandardCharsets.UTF_8);
    }

    /** Tensors of a safetensors file: 8 bytes with the length of a JSON header, the header, the data. */
    private static Map<String, byte[]> tensors(Path path) throws IOException, JSONException {
        byte[] bytes = Files.readAllBytes(path);
        int length = (int) ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).getLong();
        JSONObject header = new JSONObject(new String(bytes, 8, length, StandardCharsets.UTF_8));
        Map<String, byte[]> found = new HashMap<>();
        for (String name : (Iterable<String>) header::keys) {
            if (name.equals("__metadata__")) continue;
            JSONArray offsets = header.getJSONObject(name).getJSONArray("data_offsets");
            int first = offsets.getInt(0);
            byte[] data = new byte[offsets.getInt(1) - first];
            System.arraycopy(bytes, 8 + length + first, data, 0, data.length);
            found.put(name, data);
        }
        return found;
    }

    @Override
    public void close() throws OrtException {
        session.close();
    }
}
