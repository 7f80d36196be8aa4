// PASSES: observe-ranges,assign-precision,quantize-weights{keep_reference=true},search-precision{loss=100 rules="%a=8"}

/// rules for what is searched, with what 16 bits would spare and cost; what the user named is not among them
// CHECK: mqc.precision = ["%{{[nomh]}}=8  # {{[0-9.e-]+}} nats for {{[0-9]+}} MACs",
// CHECK-NOT: "%a=
builtin.module attributes {mqc.level = "llm", mqc.context = 16 : i64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x16xf32> {
    // CHECK: %x = llm.embedding {{.*}} -> tensor<?x4x!quant.uniform<u16
    %x = llm.embedding %ids {table = #mqc.weight<"table", "0", tensor<16x4xf32>>} : (tensor<?xi64>) -> tensor<?x4xf32>
    // CHECK: %n = llm.rms_norm {{.*}} -> tensor<?x4x!quant.uniform<u8
    %n = llm.rms_norm %x {eps = 1.0e-05, groups = 1} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %q = llm.linear %n {weight = #mqc.weight<"wq", "0", tensor<4x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %k = llm.linear %n {weight = #mqc.weight<"wk", "0", tensor<4x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %v = llm.linear %n {weight = #mqc.weight<"wv", "0", tensor<4x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    // CHECK: %a = llm.attention {{.*}} -> tensor<?x4x!quant.uniform<u8
    %a = llm.attention %q, %k, %v {layer = 0, heads = 1, kv_heads = 1, scale = 0.5} : (tensor<?x4xf32>, tensor<?x4xf32>, tensor<?x4xf32>) -> tensor<?x4xf32>
    %o = llm.linear %a {weight = #mqc.weight<"wo", "0", tensor<4x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    /// by the default plan 16 bits, and 8 where the loss allows it
    // CHECK: %h = llm.mul {{.*}} -> tensor<?x4x!quant.uniform<u8
    %h = llm.mul %o, %v : (tensor<?x4xf32>, tensor<?x4xf32>) -> tensor<?x4xf32>
    %d = llm.linear %h {weight = #mqc.weight<"wd", "0", tensor<4x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    /// sums are not searched
    // CHECK: %y = llm.add {{.*}} -> tensor<?x4x!quant.uniform<u16
    %y = llm.add %x, %d : (tensor<?x4xf32>, tensor<?x4xf32>) -> tensor<?x4xf32>
    // CHECK: %m = llm.rms_norm {{.*}} -> tensor<?x4x!quant.uniform<u8
    %m = llm.rms_norm %y {eps = 1.0e-05, groups = 1} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %l = llm.linear %m {weight = #mqc.weight<"wl", "0", tensor<16x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x16xf32>
    func.return %l : tensor<?x16xf32>
  }
}
