// PASSES: assign-precision{rules="%u=16"}

// CHECK: builtin.module attributes {mqc.level = "quant"
builtin.module attributes {mqc.level = "llm", mqc.context = 8 : i64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x4xf32> {
    /// the residual stream has 16 bits and a quarter more range than was seen
    // CHECK: %x = llm.embedding {{.*}} tensor<?x4x!quant.uniform<u16:f32, 3.8147554741741054e-05:32768>>
    %x = llm.embedding %ids {clip = array<f64: -1.0, 1.0>, range = array<f64: -1.0, 1.0>, table = #mqc.weight<"table", "0", tensor<16x4xf32>>} : (tensor<?xi64>) -> tensor<?x4xf32>
    /// everything else has 8, over `clip`
    // CHECK: %n = llm.rms_norm {{.*}} tensor<?x4x!quant.uniform<u8:f32, 0.01568627450980392:128>>
    %n = llm.rms_norm %x {clip = array<f64: -2.0, 2.0>, eps = 1.0e-05, groups = 1, range = array<f64: -9.0, 9.0>} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    /// but what a rule names
    // CHECK: %u = llm.linear {{.*}} tensor<?x4x!quant.uniform<u16:
    %u = llm.linear %n {clip = array<f64: 0.0, 1.0>, range = array<f64: 0.0, 1.0>, weight = #mqc.weight<"wu", "0", tensor<4x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    /// the type that a value came with is above the plan
    // CHECK: %g = llm.mul {{.*}} tensor<?x4x!quant.uniform<u8:f32, 0.25:100>>
    %g = llm.mul %u, %u {clip = array<f64: 0.0, 1.0>, given = !quant.uniform<u8:f32, 0.25:100>, range = array<f64: 0.0, 1.0>} : (tensor<?x4xf32>, tensor<?x4xf32>) -> tensor<?x4xf32>
    /// what an add reads has 16 bits, over at most four times `clip`
    // CHECK: %d = llm.linear {{.*}} tensor<?x4x!quant.uniform<u16:f32, 6.103608758678569e-05:0>>
    %d = llm.linear %g {clip = array<f64: 0.0, 1.0>, range = array<f64: 0.0, 100.0>, weight = #mqc.weight<"wd", "0", tensor<4x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    // CHECK: %y = llm.add {{.*}} tensor<?x4x!quant.uniform<u16:
    %y = llm.add %x, %d {clip = array<f64: 0.0, 1.0>, range = array<f64: 0.0, 1.0>} : (tensor<?x4xf32>, tensor<?x4xf32>) -> tensor<?x4xf32>
    /// logits stay float until they are lowered
    // CHECK: %l = llm.linear {{.*}} -> tensor<?x4xf32>
    %l = llm.linear %y {clip = array<f64: 0.0, 1.0>, range = array<f64: 0.0, 1.0>, weight = #mqc.weight<"wl", "0", tensor<4x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    func.return %l : tensor<?x4xf32>
  }
}
