// PASSES: learn-ranges{steps=3 lr_ranges=0.1 lr_scales=0.1 lr_biases=0.1}

// CHECK-LABEL: func.func @main
builtin.module attributes {mqc.level = "quant", mqc.context = 16 : i64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x16xf32> {
    /// scale and zero point of every value are learned, and its storage stays
    // CHECK: %x = llm.embedding {{.*}} -> tensor<?x4x!quant.uniform<u16:f32, {{[0-9.e-]+}}:{{[0-9]+}}>>
    // CHECK-NOT: uniform<u16:f32, 0.0001:32768>
    %x = llm.embedding %ids {table = #mqc.weight<"table", "0", tensor<16x4xf32>>} : (tensor<?xi64>) -> tensor<?x4x!quant.uniform<u16:f32, 0.0001:32768>>
    /// the scales that a norm's users absorb become its gain
    // CHECK: %n = llm.rms_norm %x {eps = 1.000000e-05 : f64, gain = #mqc.weight<"n.gain", "{{[0-9a-f]+}}", tensor<4xf32>>
    %n = llm.rms_norm %x {eps = 1.0e-05, groups = 1} : (tensor<?x4x!quant.uniform<u16:f32, 0.0001:32768>>) -> tensor<?x4x!quant.uniform<u8:f32, 0.03:128>>
    /// a matrix product gets a bias
    // CHECK: %q = llm.linear %n {bias = #mqc.weight<"q.bias", "{{[0-9a-f]+}}", tensor<4xf32>>, weight = #mqc.weight<"wq"
    %q = llm.linear %n {weight = #mqc.weight<"wq", "0", tensor<4x4xf32>>} : (tensor<?x4x!quant.uniform<u8:f32, 0.03:128>>) -> tensor<?x4x!quant.uniform<u8:f32, 0.03:128>>
    %k = llm.linear %n {weight = #mqc.weight<"wk", "0", tensor<4x4xf32>>} : (tensor<?x4x!quant.uniform<u8:f32, 0.03:128>>) -> tensor<?x4x!quant.uniform<u8:f32, 0.03:128>>
    %v = llm.linear %n {weight = #mqc.weight<"wv", "0", tensor<4x4xf32>>} : (tensor<?x4x!quant.uniform<u8:f32, 0.03:128>>) -> tensor<?x4x!quant.uniform<u8:f32, 0.03:128>>
    // CHECK: %a = llm.attention %q, %k, %v
    // CHECK-NOT: uniform<u8:f32, 0.03:128>
    %a = llm.attention %q, %k, %v {layer = 0, heads = 1, kv_heads = 1, scale = 0.5} : (tensor<?x4x!quant.uniform<u8:f32, 0.03:128>>, tensor<?x4x!quant.uniform<u8:f32, 0.03:128>>, tensor<?x4x!quant.uniform<u8:f32, 0.03:128>>) -> tensor<?x4x!quant.uniform<u8:f32, 0.03:128>>
    %o = llm.linear %a {weight = #mqc.weight<"wo", "0", tensor<4x4xf32>>} : (tensor<?x4x!quant.uniform<u8:f32, 0.03:128>>) -> tensor<?x4x!quant.uniform<u16:f32, 0.0002:32768>>
    %y = llm.add %x, %o : (tensor<?x4x!quant.uniform<u16:f32, 0.0001:32768>>, tensor<?x4x!quant.uniform<u16:f32, 0.0002:32768>>) -> tensor<?x4x!quant.uniform<u16:f32, 0.0002:32768>>
    /// the logits stay as they are
    // CHECK: %l = llm.linear %m {weight = #mqc.weight<"wl", "{{[0-9a-f]+}}", tensor<16x4xf32>>} : {{.*}} -> tensor<?x16xf32>
    %m = llm.rms_norm %y {eps = 1.0e-05, groups = 1} : (tensor<?x4x!quant.uniform<u16:f32, 0.0002:32768>>) -> tensor<?x4x!quant.uniform<u8:f32, 0.03:128>>
    %l = llm.linear %m {weight = #mqc.weight<"wl", "0", tensor<16x4xf32>>} : (tensor<?x4x!quant.uniform<u8:f32, 0.03:128>>) -> tensor<?x16xf32>
    func.return %l : tensor<?x16xf32>
  }
}
