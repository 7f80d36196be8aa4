// PASSES: quantize-weights,lower-to-int

builtin.module attributes {mqc.level = "quant", mqc.context = 8 : i64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x16xf32> {
    // CHECK: %x = int.embedding
    %x = llm.embedding %ids {table = #mqc.weight<"table", "0", tensor<16x8xf32>>} : (tensor<?xi64>) -> tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>
    // CHECK-NEXT: %s.acc = int.linear %x
    // CHECK-NEXT: %s = int.requant %s.acc {{.*}} -> tensor<?x4xui16>
    %s = llm.linear %x {weight = #mqc.weight<"ws", "0", tensor<4x8xf32>>} : (tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>) -> tensor<?x4x!quant.uniform<u16:f32, 0.001:32768>>
    /// scores are weighed as powers of two, 2^-11 octaves a step: 0.001 · log2(e) · 2^11 = 2.95
    // CHECK-NEXT: %g.weight = int.route %s {bias = {{.*}} tensor<4xsi32>>, group_scores = 1 : i64, groups = 2 : i64, normalization = "softmax", score_multiplier = 1586{{[0-9]+}} : i64, score_shift = -2 : i64, shares = 0 : i64, top_groups = 1 : i64, top_k = 2 : i64, x_zero = 32768 : i64} : (tensor<?x4xui16>) -> tensor<?x4xsi32>
    /// the gain has a multiplier for each expert
    // CHECK-NEXT: %g = int.requant %g.weight {multiplier = {{.*}} tensor<4xsi32>>, {{.*}} zero_point = 0 : i64}
    %g = llm.route %s {bias = #mqc.weight<"b", "0", tensor<4xf32>>, gain = #mqc.weight<"gain", "0", tensor<4xf32>>, group_scores = 1, groups = 2, normalization = "softmax", shares = 0, top_groups = 1, top_k = 2} : (tensor<?x4x!quant.uniform<u16:f32, 0.001:32768>>) -> tensor<?x4x!quant.uniform<u16:f32, 0.00002:0>>
    /// a block of outputs for each of four experts
    // CHECK-NEXT: %u.acc = int.linear %x, %g {acc_shift = 0 : i64, {{.*}} expert_axis = 0 : i64, gates_zero = 0 : i64, {{.*}} : (tensor<?x8xui8>, tensor<?x4xui16>) -> tensor<?x24xsi32>
    // CHECK-NEXT: %u = int.requant %u.acc
    %u = llm.linear %x, %g {expert_axis = 0, weight = #mqc.weight<"wu", "0", tensor<24x8xf32>>} : (tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>, tensor<?x4x!quant.uniform<u16:f32, 0.00002:0>>) -> tensor<?x24x!quant.uniform<u16:f32, 0.001:32768>>
    // CHECK-NEXT: %h.product = int.gate %u, %g {acc_shift = 2 : i64, gates_zero = 0 : i64, x_zero = 32768 : i64} : (tensor<?x24xui16>, tensor<?x4xui16>) -> tensor<?x24xsi32>
    // CHECK-NEXT: %h = int.requant %h.product
    %h = llm.gate %u, %g : (tensor<?x24x!quant.uniform<u16:f32, 0.001:32768>>, tensor<?x4x!quant.uniform<u16:f32, 0.00002:0>>) -> tensor<?x24x!quant.uniform<u16:f32, 0.001:32768>>
    // CHECK-NEXT: %d.acc = int.linear %h, %g {acc_shift = {{[0-9]+}} : i64, {{.*}} expert_axis = 1 : i64, gates_zero = 0 : i64, {{.*}} -> tensor<?x8xsi32>
    // CHECK-NEXT: %d = int.requant %d.acc
    %d = llm.linear %h, %g {expert_axis = 1, weight = #mqc.weight<"wd", "0", tensor<8x24xf32>>} : (tensor<?x24x!quant.uniform<u16:f32, 0.001:32768>>, tensor<?x4x!quant.uniform<u16:f32, 0.00002:0>>) -> tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>
    %l = llm.linear %d {range = array<f64: -12.0, 10.0>, weight = #mqc.weight<"wl", "0", tensor<16x8xf32>>} : (tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>) -> tensor<?x16xf32>
    func.return %l : tensor<?x16xf32>
  }
}
